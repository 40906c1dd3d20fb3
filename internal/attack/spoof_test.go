package attack_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// forgedPort is the external port that forged responses grant.
const forgedPort = 6666

// forge returns a standard response to a request, with the forged port at an
// address of the attacker: RFC 6886, sections 3.2 and 3.3; RFC 6887, sections 11.1
// and 14.1. It copies the nonce, which no host off the path can do.
func forge(request []byte) []byte {
	switch {
	case len(request) >= 2 && request[0] == 0 && request[1] == 0:
		return []byte{0, 128, 0, 0, 0, 0, 0, 9, 6, 6, 6, 6}
	case len(request) >= 12 && request[0] == 0:
		b := []byte{0, request[1] | 128, 0, 0, 0, 0, 0, 9, request[4], request[5], 0, 0}
		binary.BigEndian.PutUint16(b[10:], forgedPort)
		return append(b, request[8:12]...)
	case len(request) >= 24 && request[0] == 2 && request[1] == 0:
		return append([]byte{2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9}, make([]byte, 12)...)
	case len(request) >= 60 && request[0] == 2 && request[1] == 1:
		b := make([]byte, 60)
		copy(b, []byte{2, 129, 0, 0})
		copy(b[4:8], request[4:8])
		b[11] = 9
		copy(b[24:42], request[24:42]) // nonce, protocol, internal port
		binary.BigEndian.PutUint16(b[42:], forgedPort)
		copy(b[44:], netip.MustParseAddr("::ffff:6.6.6.6").AsSlice())
		return b
	}
	return nil
}

// injectForged makes the attacker send the response that reply returns, three
// times, before the gateway responds to the request.
func injectForged(t *testing.T, gw *gatewaytest.Gateway, from netip.AddrPort, reply func(request []byte) []byte) {
	t.Helper()
	conn := listenUDP(t, from)
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool {
		if b := reply(r.Raw); b != nil {
			for range 3 {
				_, _ = conn.WriteToUDPAddrPort(b, r.Source)
			}
		}
		return false // the gateway also responds as usual
	}})
}

// naiveMap sends a NAT-PMP request to a gateway and accepts the first datagram
// as the response.
func naiveMap(t *testing.T, gw netip.AddrPort) (port uint16) {
	t.Helper()
	return binary.BigEndian.Uint16(naiveExchange(t, gw, []byte{0, 2, 0, 0, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x0e, 0x10})[10:])
}

// naiveMapPCP does the same with PCP.
func naiveMapPCP(t *testing.T, gw netip.AddrPort) (port uint16) {
	t.Helper()
	request := make([]byte, 60)
	copy(request, []byte{2, 1, 0, 0, 0, 0, 0x0e, 0x10})
	copy(request[8:], netip.MustParseAddr("::ffff:127.0.0.1").AsSlice())
	copy(request[24:], "twelve bytes")
	copy(request[36:], []byte{6, 0, 0, 0, 0x1f, 0x90, 0x1f, 0x90})
	copy(request[44:], netip.MustParseAddr("::ffff:0.0.0.0").AsSlice())
	return binary.BigEndian.Uint16(naiveExchange(t, gw, request)[42:])
}

func naiveExchange(t *testing.T, gw netip.AddrPort, request []byte) []byte {
	t.Helper()
	conn := listenUDP(t, anyLocalPort)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	if _, err := conn.WriteToUDPAddrPort(request, gw); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1100)
	if _, err := conn.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// newClients returns the backends that use port 5351.
func newClients(t *testing.T, gw *gatewaytest.Gateway) map[string]backends.Backend {
	t.Helper()
	const soon = 200 * time.Millisecond // PCP sends four times, and fails after three seconds
	n, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), FirstWait: soon})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pcp.New(pcp.Config{Gateway: gw.Addr(), FirstWait: soon})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = n.Close(), p.Close() })
	return map[string]backends.Backend{"natpmp": n, "pcp": p}
}

// TestOffPath checks that responses from other hosts and ports are ignored, even if
// only their source is wrong.
func TestOffPath(t *testing.T) {
	for name, from := range map[string]func(gw *gatewaytest.Gateway) netip.AddrPort{
		"another host, the gateway's port": func(gw *gatewaytest.Gateway) netip.AddrPort {
			return netip.AddrPortFrom(attacker, gw.Addr().Port())
		},
		"another host":                func(*gatewaytest.Gateway) netip.AddrPort { return netip.AddrPortFrom(attacker, 0) },
		"this host":                   func(*gatewaytest.Gateway) netip.AddrPort { return anyLocalPort },
		"another port of the gateway": func(*gatewaytest.Gateway) netip.AddrPort { return netip.AddrPortFrom(gatewayAddr, 0) },
		"the announcement port, 5350": func(*gatewaytest.Gateway) netip.AddrPort { return netip.AddrPortFrom(attacker, 5350) },
	} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
			injectForged(t, gw, from(gw), forge)
			if got := naiveMap(t, gw.Addr()); got != forgedPort {
				t.Fatalf("the naive client got port %d: the attack has no effect", got)
			}
			if got := naiveMapPCP(t, gw.Addr()); got != forgedPort {
				t.Fatalf("the naive client got port %d with PCP: the attack has no effect", got)
			}
			resetTable(t, gw, 2)
			checkNoLeaks(t, func() { checkUnaffected(t, gw) })
		})
	}
}

// checkUnaffected maps, renews and unmaps with each client, and with a Forwarder.
func checkUnaffected(t *testing.T, gw *gatewaytest.Gateway) {
	for name, b := range newClients(t, gw) {
		addr, err := b.ExternalAddr(t.Context())
		if err != nil || addr != gw.External() {
			t.Errorf("%s: external address %v, %v", name, addr, err)
		}
		m, err := b.Map(t.Context(), webRequest)
		if err != nil || m.External != netip.AddrPortFrom(gw.External(), 8080) {
			t.Errorf("%s: Map: %v, %v", name, m.External, err)
		}
		if m, err = b.Renew(t.Context(), m, webRequest); err != nil || m.External.Port() != 8080 {
			t.Errorf("%s: Renew: %v, %v", name, m.External, err)
		}
		if n := len(gw.Table()); n != 1 {
			t.Errorf("%s: the gateway has %d mappings", name, n)
		}
		if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
			t.Errorf("%s: Unmap: %v, the gateway has %v", name, err, gw.Table())
		}
		_ = b.Close()
	}
	f := newForwarder(t, gw, forward.Config{})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.External().AddrPort != netip.AddrPortFrom(gw.External(), 8080) {
		t.Errorf("Enable: %v, %v", m, err)
	}
	if err := f.Shutdown(t.Context()); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Shutdown: %v, the gateway has %v", err, gw.Table())
	}
}

// newForwarder returns a Forwarder that is configured with the gateway's address.
func newForwarder(t *testing.T, gw *gatewaytest.Gateway, config forward.Config) *forward.Forwarder {
	t.Helper()
	config.Gateway, config.Test.SSDP = gw.Addr(), gw.SSDP()
	for _, at := range []*netip.AddrPort{&config.Test.Announce, &config.Test.Notify} {
		if !at.IsValid() {
			*at = anyLocalPort
		}
	}
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestReplay checks that a replayed response of the gateway is ignored if it
// arrives from another host.
func TestReplay(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	// The attacker recorded the grant of a mapping that was deleted since.
	recorded := map[string][]byte{}
	stop := gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "map" }, Corrupt: func(b []byte) []byte {
		recorded[string(b[:2])] = b
		return b
	}})
	old := webRequest
	old.External = netip.AddrPortFrom(netip.Addr{}, forgedPort)
	for name, b := range newClients(t, gw) {
		m, err := b.Map(t.Context(), old)
		if err != nil || m.External.Port() != forgedPort {
			t.Fatalf("%s: %v, %v", name, m.External, err)
		}
		if err := b.Unmap(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	gw.ResetStats()
	injectForged(t, gw, netip.AddrPortFrom(attacker, gw.Addr().Port()), func(request []byte) []byte {
		return recorded[string([]byte{request[0], request[1] | 128})]
	})
	if got := naiveMap(t, gw.Addr()); got != forgedPort {
		t.Fatalf("the naive client got port %d: the attack has no effect", got)
	}
	resetTable(t, gw, 1)
	checkNoLeaks(t, func() { checkUnaffected(t, gw) })
}

// resetTable deletes all mappings after the gateway has handled the given number of
// requests. A naive client does not wait for that.
func resetTable(t *testing.T, gw *gatewaytest.Gateway, requests int) {
	t.Helper()
	if _, err := gw.AwaitRequests(t.Context(), requests, nil); err != nil {
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
}

// TestMismatchedResponse checks that a response from the gateway to another request
// is ignored. Other programs on this host send requests to the gateway too, and an
// attacker can make it respond.
func TestMismatchedResponse(t *testing.T) {
	for name, test := range map[string]struct {
		naive   func(*testing.T, netip.AddrPort) uint16
		client  string
		corrupt func(response []byte)
	}{
		"NAT-PMP: another internal port": {naiveMap, "natpmp", func(b []byte) { b[9]++ }},
		"NAT-PMP: another opcode":        {naiveMap, "natpmp", func(b []byte) { b[1] = 129 }},
		"NAT-PMP: not a response":        {naiveMap, "natpmp", func(b []byte) { b[1] &^= 128 }},
		"PCP: another nonce":             {naiveMapPCP, "pcp", func(b []byte) { b[35]++ }},
		"PCP: another internal port":     {naiveMapPCP, "pcp", func(b []byte) { b[41]++ }},
		"PCP: another protocol":          {naiveMapPCP, "pcp", func(b []byte) { b[36] = 17 }},
		"PCP: another opcode":            {naiveMapPCP, "pcp", func(b []byte) { b[1] = 130 }},
		"PCP: not a response":            {naiveMapPCP, "pcp", func(b []byte) { b[1] &^= 128 }},
	} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
			first := func() { // the first of two requests for a mapping gets the wrong response
				gw.Inject(gatewaytest.Fault{
					Times: 1, Match: func(r gatewaytest.Request) bool { return r.Op == "map" },
					Reply: func(request []byte) [][]byte {
						b := forge(request)
						test.corrupt(b)
						return [][]byte{b}
					},
				})
			}
			first()
			if got := test.naive(t, gw.Addr()); got != forgedPort {
				t.Fatalf("the naive client got port %d: the attack has no effect", got)
			}
			first()
			m, err := newClients(t, gw)[test.client].Map(t.Context(), webRequest)
			if err != nil || m.External.Port() != 8080 || len(gw.Table()) != 1 {
				t.Errorf("Map: %v, %v, the gateway has %v", m.External, err, gw.Table())
			}
		})
	}
}
