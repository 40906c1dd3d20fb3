package natpmp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

// newClient returns a client with short waits. They are long enough for a gateway
// in this process that does not run for half a second.
func newClient(t *testing.T, gateway netip.AddrPort) *natpmp.Client {
	t.Helper()
	c, err := natpmp.NewClient(natpmp.Config{Gateway: gateway, Transmissions: 3, FirstWait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// injectReplies makes the gateway answer every request with these datagrams, in
// hexadecimal.
func injectReplies(t *testing.T, gw *gatewaytest.Gateway, replies ...string) {
	t.Helper()
	var raw [][]byte
	for _, r := range replies {
		b, err := hex.DecodeString(strings.ReplaceAll(r, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, b)
	}
	gw.Inject(gatewaytest.Fault{Reply: func([]byte) [][]byte { return raw }})
}

// TestClientBytes compares requests with the diagrams in RFC 6886, sections 3.2 to
// 3.4.
func TestClientBytes(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	c := newClient(t, gw.Addr())
	ctx := t.Context()
	for name, call := range map[string]struct {
		do          func() error
		sent, reply string
	}{
		"external address": {
			func() error { _, err := c.ExternalAddr(ctx); return err },
			"0000", "00800000 000004d2 cb007107",
		},
		"map udp": {
			func() error {
				_, err := c.Map(ctx, natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881, ExternalPort: 6881})
				return err
			},
			"00010000 1ae11ae1 00001c20", "00810000 000004d2 1ae11ae2 00000e10",
		},
		"unmap tcp": {
			func() error { return c.Unmap(ctx, backends.TCP, 8080) },
			"00020000 1f900000 00000000", "00820000 000004d2 1f900000 00000000",
		},
		"unmap all udp": {
			func() error { return c.UnmapAll(ctx, backends.UDP) },
			"00010000 00000000 00000000", "00810000 000004d2 00000000 00000000",
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw.ResetStats()
			reply, _ := hex.DecodeString(strings.ReplaceAll(call.reply, " ", ""))
			remove := gw.Inject(gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{reply} }})
			defer remove()
			if err := call.do(); err != nil {
				t.Fatal(err)
			}
			want, _ := hex.DecodeString(strings.ReplaceAll(call.sent, " ", ""))
			if got := gw.Requests()[0].Raw; !bytes.Equal(got, want) {
				t.Errorf("sent %x, want %x", got, want)
			}
		})
	}
}

func TestClientResponses(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	injectReplies(t, gw, "00810000 000004d2 1ae11ae2 00000e10")
	got, err := newClient(t, gw.Addr()).Map(t.Context(), natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881})
	if err != nil {
		t.Fatal(err)
	}
	want := natpmp.MapResponse{
		Protocol: backends.UDP, Epoch: 1234 * time.Second,
		InternalPort: 6881, ExternalPort: 6882, Lifetime: time.Hour,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestClientRefusals checks the errors for refusals of and wrong replies to a map
// request for UDP port 6881.
func TestClientRefusals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		reply   string
		kind    error
		code    natpmp.ResultCode // 0: no *ResultError
		version uint8             // 0: no *VersionError
	}{
		"not authorized":               {"00810002 000004d2 1ae10000 00000000", backends.ErrNotAuthorized, natpmp.NotAuthorized, 0},
		"network failure":              {"00810003 000004d2 1ae10000 00000000", backends.ErrNetworkFailure, natpmp.NetworkFailure, 0},
		"out of resources, echoed":     {"00810004 000004d2 1ae11ae1 00001c20", backends.ErrNoResources, natpmp.OutOfResources, 0},
		"undefined result":             {"00810009 000004d2 1ae10000 00000000", backends.ErrMalformed, 9, 0},
		"unsupported opcode, echo":     {"00810005 1ae10000 00001c20", backends.ErrUnsupported, natpmp.UnsupportedOpcode, 0},
		"unsupported opcode, 8 bytes":  {"00810005 000004d2", backends.ErrUnsupported, natpmp.UnsupportedOpcode, 0},
		"unsupported version, RFC":     {"00000001 000004d2", backends.ErrUnsupported, natpmp.UnsupportedVersion, 0},
		"unsupported version, R bit":   {"00810001 000004d2", backends.ErrUnsupported, natpmp.UnsupportedVersion, 0},
		"PCP only, complete":           {"02810001 00000708 000004d2 00000000 00000000 00000000", backends.ErrUnsupported, 0, 2},
		"PCP only, two bytes":          {"0280", backends.ErrUnsupported, 0, 2},
		"PCP only, twelve bytes":       {"02810002 a2a90000 004f8fd2", backends.ErrUnsupported, 0, 2},
		"version 1":                    {"01810001 00000708 000004d2 00000000 00000000 00000000", backends.ErrUnsupported, 0, 1},
		"granted port 0":               {"00810000 000004d2 1ae10000 00001c20", backends.ErrMalformed, 0, 0},
		"granted lifetime 0":           {"00810000 000004d2 1ae11ae1 00000000", backends.ErrMalformed, 0, 0},
		"ignored: three bytes":         {"008100", backends.ErrNoReply, 0, 0},
		"refused, 8 bytes":             {"00810002 000004d2", backends.ErrNotAuthorized, natpmp.NotAuthorized, 0},
		"refused, 4 bytes":             {"00810004", backends.ErrNoResources, natpmp.OutOfResources, 0},
		"refused, without a port":      {"00810003 000004d2 00000000 00000000", backends.ErrNetworkFailure, natpmp.NetworkFailure, 0},
		"refused, another port":        {"00810003 000004d2 1b571b57 00001c20", backends.ErrNetworkFailure, natpmp.NetworkFailure, 0},
		"ignored: another port":        {"00810000 000004d2 1b571b58 00001c20", backends.ErrNoReply, 0, 0},
		"ignored: truncated ports":     {"00810000 000004d2 00e100e1 00001c20", backends.ErrNoReply, 0, 0},
		"ignored: another opcode":      {"00820000 000004d2 1ae11ae1 00001c20", backends.ErrNoReply, 0, 0},
		"ignored: the request itself":  {"00010000 1ae11ae1 00001c20", backends.ErrNoReply, 0, 0},
		"ignored: short success":       {"00810000 000004d2 1ae11ae1", backends.ErrNoReply, 0, 0},
		"ignored: a PCP MAP success":   {"02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b 11000000 1ae11ae1 00000000 00000000 0000ffff cb007107", backends.ErrNoReply, 0, 0},
		"ignored: version 0, success":  {"00000000 000004d2", backends.ErrNoReply, 0, 0},
		"ignored: empty":               {"", backends.ErrNoReply, 0, 0},
		"ignored: PCP request, echoed": {"02010000 00001c20 00000000 00000000 0000ffff c0a8010a", backends.ErrNoReply, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			injectReplies(t, gw, test.reply)
			_, err := newClient(t, gw.Addr()).Map(t.Context(), natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881})
			if !errors.Is(err, test.kind) {
				t.Fatalf("error %v, want %v", err, test.kind)
			}
			var result *natpmp.ResultError
			if errors.As(err, &result) != (test.code != 0) || (result != nil && (result.Code != test.code || result.Op != natpmp.OpMapUDP)) {
				t.Errorf("error %#v, want result %d", err, test.code)
			}
			var version *natpmp.VersionError
			if errors.As(err, &version) != (test.version != 0) || (version != nil && version.Version != test.version) {
				t.Errorf("error %#v, want version %d", err, test.version)
			}
		})
	}
}

// TestClientIgnores checks that a wrong datagram does not end the wait for the
// reply.
func TestClientIgnores(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	injectReplies(t, gw, "008100", "00810000 000004d2 1b571b58 00001c20", "00810000 000004d2 1ae11ae2 00000e10")
	got, err := newClient(t, gw.Addr()).Map(t.Context(), natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881})
	if err != nil || got.ExternalPort != 6882 {
		t.Errorf("Map: %+v, %v", got, err)
	}
}

// TestClientWrongSource checks that datagrams from another port of the gateway's
// address are ignored.
func TestClientWrongSource(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	c := newClient(t, gw.Addr())
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw.Addr().Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	forged, _ := hex.DecodeString("00810000000004d21ae11ae200000e10")
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool {
			_, _ = socket.WriteToUDPAddrPort(forged, r.Source)
			return true
		},
		Drop: true,
	})
	if got, err := c.Map(t.Context(), natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881}); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Map: %+v, %v; want ErrNoReply", got, err)
	}
}

func TestClientRefused(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	gw.Down()
	c, err := natpmp.NewClient(natpmp.Config{Gateway: gw.Addr(), FirstWait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.ExternalAddr(t.Context()) // takes an hour unless the ICMP error ends it
	if !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error %v, want ErrNoReply and ECONNREFUSED", err)
	}
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExternalAddr(t.Context()); err != nil {
		t.Errorf("after the port was opened: %v", err)
	}
}

func TestClientRetransmits(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true, Times: 2})
	if _, err := newClient(t, gw.Addr()).ExternalAddr(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(gw.Requests()); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

func TestClientCause(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	dropRequests(gw)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		_, _ = gw.AwaitRequests(ctx, 1, nil)
		cancel(cause)
	}()
	c, err := natpmp.NewClient(natpmp.Config{Gateway: gw.Addr(), FirstWait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.ExternalAddr(ctx); !errors.Is(err, cause) {
		t.Errorf("error %v, want the context's cause", err)
	}
}

func TestTransact(t *testing.T) {
	gw := start(t, gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}})
	c := newClient(t, gw.Addr())
	for name, test := range map[string]struct{ request, want string }{
		"external address": {"0000", "0080"},
		"unknown opcode":   {"00050000", "00850005"},
		"unknown version":  {"0900", "0000 0001"},
	} {
		t.Run(name, func(t *testing.T) {
			request, _ := hex.DecodeString(test.request)
			want, _ := hex.DecodeString(strings.ReplaceAll(test.want, " ", ""))
			if got, err := c.Transact(t.Context(), request); err != nil || !bytes.HasPrefix(got, want) {
				t.Errorf("Transact: %x, %v; want %x…", got, err, want)
			}
		})
	}
	if _, err := c.Transact(t.Context(), []byte{0}); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Transact of one byte: %v, want ErrInvalid", err)
	}
}

func TestNewClientInvalid(t *testing.T) {
	for name, config := range map[string]natpmp.Config{
		"no gateway":             {},
		"unspecified":            {Gateway: netip.MustParseAddrPort("0.0.0.0:5351")},
		"IPv6":                   {Gateway: netip.MustParseAddrPort("[2001:db8::1]:5351")},
		"negative transmissions": {Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Transmissions: -1},
		"negative wait":          {Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), FirstWait: -1},
	} {
		if _, err := natpmp.NewClient(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	c, err := natpmp.NewClient(natpmp.Config{Gateway: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0)})
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddrPort("192.0.2.1:5351"); c.Gateway() != want {
		t.Errorf("gateway %v, want %v", c.Gateway(), want)
	}
	_ = c.Close()
}

// TestLateReply checks that a late reply to a map request is not accepted as the
// reply to a deletion, which is sent again.
func TestLateReply(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	c := newClient(t, gw.Addr())
	if _, err := c.Map(t.Context(), natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080}); err != nil {
		t.Fatal(err)
	}
	lateReply, _ := hex.DecodeString("00820000000004d21f901f9000001c20")
	gw.Inject(gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte { return [][]byte{lateReply} }})
	if err := c.Unmap(t.Context(), backends.TCP, 8080); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestOwnPort checks a gateway that assigns its own internal port, as those of VPN
// providers do, to each request and for a shorter time than requested.
func TestOwnPort(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var mu sync.Mutex
	var requested []uint16
	for _, ports := range []struct {
		granted, deleted string
		requested        uint16 // the internal port in requests about the mapping
	}{
		{"93519351", "93519351", 8080}, {"93519351", "93510000", 8080}, {"00009351", "00009351", 37713}, {"00009351", "00000000", 37713},
	} {
		remove := gw.Inject(gatewaytest.Fault{
			Match: func(r gatewaytest.Request) bool { return r.Op == "map" || r.Op == "unmap" },
			Reply: func(request []byte) [][]byte {
				port, rest := binary.BigEndian.Uint16(request[4:]), ports.granted+"0000003c"
				isDeletion := bytes.Equal(request[8:], make([]byte, 4))
				if isDeletion {
					rest = ports.deleted + "00000000"
				}
				mu.Lock()
				requested = append(requested, port)
				mu.Unlock()
				reply, _ := hex.DecodeString("00820000000004d2" + rest)
				return [][]byte{reply}
			},
		})
		for _, external := range []uint16{0, 1, 8080} {
			m, err := b.Map(t.Context(), backends.Request{
				Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), External: netip.AddrPortFrom(netip.Addr{}, external),
			})
			if err != nil || m.Internal.Port() != 37713 || m.External.Port() != 37713 || m.Lifetime != time.Minute {
				t.Errorf("Map of external port %d: %+v, %v", external, m, err)
			}
			if renewed, err := b.Renew(t.Context(), m, backends.Request{}); err != nil || renewed.Internal != m.Internal {
				t.Errorf("Renew: %+v, %v", renewed, err)
			}
			if err = b.Unmap(t.Context(), m); err != nil {
				t.Errorf("Unmap with %v: %v", ports, err)
			}
			mu.Lock()
			if want := []uint16{8080, ports.requested, ports.requested}; !slices.Equal(slices.Compact(requested), slices.Compact(want)) {
				t.Errorf("requests with %v for internal ports %v", ports, requested)
			}
			requested = nil
			mu.Unlock()
		}
		remove()
	}
}

// TestLateReplyOfAnotherPort checks that no late reply to a request for another port
// is accepted. The gateway's reply to the new request is accepted, even if it arrives
// after any number of late replies.
func TestLateReplyOfAnotherPort(t *testing.T) {
	for name, late := range map[string]string{
		"success": "00820000 000004d2 1b571b57 00001c20",
		"refusal": "00820004 000004d2 1b570000 00000000",
		"short":   "00820004 000004d2",
	} {
		gw, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer gw.Close()
		go func() {
			var first netip.AddrPort // the socket that sent the request for the other port
			for buf := make([]byte, 64); ; {
				n, from, err := gw.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				reply := strings.ReplaceAll(late, " ", "")
				if !first.IsValid() {
					first = from
				} else if from != first && n == 12 {
					reply = "00820000000004d21f901f9000001c20"
				}
				raw, _ := hex.DecodeString(reply)
				for range 5 {
					_, _ = gw.WriteToUDPAddrPort(raw, from)
				}
			}
		}()
		c := newClient(t, netip.MustParseAddrPort(gw.LocalAddr().String()))
		got, err := c.Map(t.Context(), natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080})
		if err != nil || got.InternalPort != 8080 || got.ExternalPort != 8080 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestShortExternalAddrError checks a refusal of eight bytes.
func TestShortExternalAddrError(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	injectReplies(t, gw, "00800003 000004d2")
	if _, err := newClient(t, gw.Addr()).ExternalAddr(t.Context()); !errors.Is(err, backends.ErrNetworkFailure) {
		t.Errorf("error %v, want ErrNetworkFailure", err)
	}
}

// TestLateVersionError checks that a single version error that may be a late reply to a
// PCP request is ignored: from a gateway of this version, or from a PCP server of an
// unknown version. If it is repeated, it is accepted.
func TestLateVersionError(t *testing.T) {
	for _, form := range []string{"0000000100000539", "0082000100000539", "018100010000070800000539000000000000000000000000"} {
		gw := start(t, gatewaytest.Config{})
		c := newClient(t, gw.Addr())
		lateReply, _ := hex.DecodeString(form)
		reply := gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte { return [][]byte{lateReply} }}
		gw.Inject(reply)
		r := natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080}
		if _, err := c.Map(t.Context(), r); err != nil {
			t.Errorf("after a late version error: %v", err)
		}
		reply.Times = 0
		gw.Inject(reply)
		if _, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("after repeated version errors: %v, want ErrUnsupported", err)
		}
	}
}
