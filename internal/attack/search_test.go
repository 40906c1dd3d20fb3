package attack_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
)

// startSSDPResponder is who answers each search with a location.
func startSSDPResponder(t *testing.T, from netip.Addr, location string) netip.AddrPort {
	t.Helper()
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"+
		"USN: uuid:0::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n", location)
	return startUDPServer(t, netip.AddrPortFrom(from, 0), func(conn *net.UDPConn, _ []byte, to netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort(answer, to)
	})
}

// newBackend is the backend, told of the gateway and of where searches go.
func newBackend(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: gatewayAddr, SSDP: ssdp, Wait: 2 * time.Second, Notify: anyLocalPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// newShortSearchBackend is a backend that does not wait long for all who answer.
func newShortSearchBackend(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: gatewayAddr, SSDP: ssdp, Wait: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// checkMaps maps a port and finds it at the gateway.
func checkMaps(t *testing.T, gw *gatewaytest.Gateway, b *upnp.Backend) {
	t.Helper()
	m, err := b.Map(t.Context(), webRequest)
	if err != nil || m.External != netip.AddrPortFrom(gw.External(), 8080) || m.Gateway.Addr() != gatewayAddr {
		t.Errorf("Map: %+v, %v", m, err)
	}
	if n := len(gw.Table()); n != 1 {
		t.Errorf("the gateway has %d mappings", n)
	}
}

// TestLocationOnOtherHost: an answer to a search names a host that trusts its
// neighbours, in its LOCATION or in what is found there. Whoever follows is the
// attacker's hands behind the firewall.
func TestLocationOnOtherHost(t *testing.T) {
	for name, attack := range map[string]func(prey *device, own *device) (location, description string){
		"LOCATION": func(prey, _ *device) (string, string) { return fmt.Sprintf("http://%v/", prey.addr), "" },
		"LOCATION, with a path that does harm": func(prey, _ *device) (string, string) {
			return fmt.Sprintf("http://%v/reboot?now=1&x=%%0d%%0aHost:%%20x", prey.addr), ""
		},
		"redirect": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), fmt.Sprintf("HTTP/1.1 302 Found\r\nLocation: http://%v/\r\nContent-Length: 0\r\n\r\n", prey.addr)
		},
		"control URL": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(httpOK(descriptionOf("", fmt.Sprintf("http://%v/ctl", prey.addr))))
		},
		"control URL without a scheme": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(httpOK(descriptionOf("", fmt.Sprintf("//%v/ctl", prey.addr))))
		},
		"URLBase": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(httpOK(descriptionOf(fmt.Sprintf("http://%v/", prey.addr), "/ctl")))
		},
	} {
		for _, from := range []netip.Addr{attacker, gatewayAddr} {
			for _, victim := range []netip.Addr{bystander, anyLocalPort.Addr()} {
				t.Run(fmt.Sprintf("%s from %v to %v", name, from, victim), func(t *testing.T) {
					gw := startGateway(t, gatewaytest.Config{})
					prey := startDevice(t, victim, func(d *device, conn net.Conn, _ string) { _ = d.write(conn, httpOK("a secret")) })
					var description string
					own := startDevice(t, from, func(d *device, conn net.Conn, request string) {
						if strings.HasPrefix(request, "GET ") {
							_ = d.write(conn, []byte(description))
						}
					})
					var location string
					location, description = attack(prey, own)
					forged := startSSDPResponder(t, from, location)

					_ = naiveDescribe(naiveSearch(t, forged))
					tricked := prey.served.Load()
					if tricked == 0 {
						t.Fatal("the naive client went nowhere: this is no attack")
					}
					checkNoLeaks(t, func() {
						b := newBackend(t, forged, gw.SSDP())
						checkMaps(t, gw, b)
						_ = b.Close()
						if victim == bystander {
							all := newShortSearchBackend(t, forged, gw.SSDP())
							if _, err := all.Gateways(t.Context()); err != nil && !errors.Is(err, backends.ErrNoReply) { // in so short a time
								t.Error(err)
							}
							_ = all.Close()
						}
					})
					if n := prey.served.Load() - tricked; n != 0 {
						t.Errorf("a host that has nothing to do with it had %d connections", n)
					}
				})
			}
		}
	}
}

// TestProxy: the environment's proxy is for the web. Who can set it for a program
// could have it tell what it says to the gateway, and answer.
func TestProxy(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	proxy := canary(t, bystander)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(name, fmt.Sprintf("http://%v/", proxy.addr))
	}
	b := newBackend(t, gw.SSDP())
	checkMaps(t, gw, b)
}

const crowdSize = 1000

// crowdAddr is the address of one of a crowd.
func crowdAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 2, byte(i >> 8), byte(i)}) }

// startCrowd are gateways, as they say, which answer one search each with several
// descriptions. Each is connected and works, but for a private address.
func startCrowd(t *testing.T, n int) (ssdp netip.AddrPort, all []*device) {
	t.Helper()
	var conns []*net.UDPConn
	for i := range n {
		all = append(all, startDevice(t, crowdAddr(i), respondAsPrivateGateway))
		conns = append(conns, listenUDP(t, netip.AddrPortFrom(crowdAddr(i), 0)))
	}
	var mu sync.Mutex
	answered := map[netip.AddrPort]bool{}
	return startUDPServer(t, netip.AddrPortFrom(attacker, 0), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		if answered[from] {
			return
		}
		answered[from] = true
		for i, conn := range conns {
			for j := range 3 {
				_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: http://%v/%d\r\n"+
					"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:%d-%d\r\n\r\n", all[i].addr, j, i, j), from)
			}
		}
	}), all
}

// respondAsPrivateGateway does as a gateway does that has an address of a private network.
func respondAsPrivateGateway(d *device, conn net.Conn, request string) {
	switch action := actionOf(request); action {
	case "":
		_ = d.write(conn, httpOK(descriptionOf("", "/ctl")))
	case "GetStatusInfo":
		_ = d.write(conn, soapResponse(action, "NewConnectionStatus", "Connected", "NewUptime", "1"))
	case "GetExternalIPAddress":
		_ = d.write(conn, soapResponse(action, "NewExternalIPAddress", "10.6.6.6"))
	case "GetSpecificPortMappingEntry":
		_ = d.write(conn, soapFault("714", "NoSuchEntryInArray"))
	default:
		_ = d.write(conn, soapResponse(action))
	}
}

// TestManyGateways: a thousand gateways answer a search. The one that leads out is
// found, and of the others as few are asked as may be worth while.
func TestManyGateways(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	ssdp, all := startCrowd(t, crowdSize)
	if n := naiveCrowd(t, ssdp, crowdSize/2); n < crowdSize/2 {
		t.Fatalf("the naive client would ask %d devices: this is no attack", n)
	}
	checkNoLeaks(t, func() {
		b := newBackend(t, ssdp, gw.SSDP())
		checkMaps(t, gw, b)
		_ = b.Close()
		b = newShortSearchBackend(t, ssdp)
		if _, err := b.Gateways(t.Context()); err != nil && !errors.Is(err, backends.ErrNoReply) { // in so short a time
			t.Error(err)
		}
		_ = b.Close()
	})
	connections, asked := 0, 0
	for _, d := range all {
		connections += int(d.served.Load())
		asked += int(min(d.served.Load(), 1))
	}
	// Each search asks 16 descriptions, whose service takes two questions more.
	if connections > 2*16*3 || asked > 2*16 {
		t.Errorf("%d devices of the crowd had %d connections", asked, connections)
	}
}

// naiveCrowd is how many devices a client would ask that asks all who answer, until
// that is enough to have been an attack.
func naiveCrowd(t *testing.T, ssdp netip.AddrPort, enough int) int {
	t.Helper()
	conn := listenUDP(t, anyLocalPort)
	defer conn.Close()
	_ = conn.SetReadBuffer(8 << 20)
	_, _ = conn.WriteToUDPAddrPort([]byte("M-SEARCH * HTTP/1.1\r\n\r\n"), ssdp)
	seen := map[string]bool{}
	b := make([]byte, 8<<10)
	_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
	for len(seen) < enough {
		n, err := conn.Read(b)
		if err != nil {
			break
		}
		_, after, _ := bytes.Cut(b[:n], []byte("LOCATION: "))
		location, _, _ := strings.Cut(string(after), "\r")
		seen[location] = true
	}
	return len(seen)
}

// TestManyDescriptionsOnOneHost: the same from one host, or with the gateway's own address: what
// it is asked is bounded too.
func TestManyDescriptionsOnOneHost(t *testing.T) {
	for name, from := range map[string]netip.Addr{"another host": attacker, "the gateway": gatewayAddr} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, gatewaytest.Config{})
			d := startDevice(t, from, func(*device, net.Conn, string) {})
			ssdp := startUDPServer(t, netip.AddrPortFrom(from, 0), func(conn *net.UDPConn, _ []byte, to netip.AddrPort) {
				for i := range 100 {
					_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: http://%v/%d\r\nUSN: uuid:%d\r\n\r\n", d.addr, i, i), to)
				}
			})
			if n := naiveCrowd(t, ssdp, 50); n < 50 {
				t.Fatalf("the naive client would ask %d times: this is no attack", n)
			}
			checkNoLeaks(t, func() {
				b := newShortSearchBackend(t, ssdp)
				if found, err := b.Gateways(t.Context()); err == nil {
					t.Errorf("found %+v", found)
				}
				_ = b.Close()
				if from == attacker { // who speaks for the gateway can fill its share
					b = newBackend(t, ssdp, gw.SSDP())
					checkMaps(t, gw, b)
					_ = b.Close()
				}
			})
			if n := d.served.Load(); n > 2*8*2 { // eight descriptions of the gateway, asked for in two ways
				t.Errorf("%v had %d connections", from, n)
			}
		})
	}
}

// TestSlowDevicesBeforeGateway: hosts that hold up whoever asks them do not keep the gateway
// from being asked, although it answers last.
func TestSlowDevicesBeforeGateway(t *testing.T) {
	const slow = 8 // devices, with two descriptions each
	gw := startGateway(t, gatewaytest.Config{})
	held := make(chan struct{}, 100)
	var ssdp []netip.AddrPort
	for i := range slow {
		d := startDevice(t, crowdAddr(i), func(_ *device, conn net.Conn, _ string) {
			held <- struct{}{}
			_, _ = conn.Read(make([]byte, 1)) // until the client goes
		})
		for j := range 2 {
			ssdp = append(ssdp, startSSDPResponder(t, crowdAddr(i), fmt.Sprintf("http://%v/%d", d.addr, j)))
		}
	}
	// A naive client asks one after the other, and never comes to the gateway.
	if body, err := naiveGetShort(naiveSearch(t, ssdp[0])); err == nil {
		t.Fatalf("the naive client read %q: this is no attack", body)
	}
	<-held
	all := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Service == "ssdp" }, Hold: all})
	go func() {
		defer close(all)
		for range slow { // as many as are asked at once
			<-held
		}
	}()
	checkNoLeaks(t, func() {
		b := newBackend(t, append(ssdp, gw.SSDP())...)
		checkMaps(t, gw, b)
		_ = b.Close()
	})
}

// TestSlowDeviceBeforeFallbackSearch: there are gateways that answer only what all devices
// answer, which is searched for when the first search has found nobody. Somebody
// who is slow to describe himself does not keep it from beginning.
func TestSlowDeviceBeforeFallbackSearch(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true, Match: func(r gatewaytest.Request) bool {
		return r.Service == "ssdp" && bytes.Contains(r.Raw, []byte("InternetGatewayDevice"))
	}})
	d := startDevice(t, attacker, func(_ *device, conn net.Conn, _ string) { _, _ = conn.Read(make([]byte, 1)) })
	forged := startSSDPResponder(t, attacker, fmt.Sprintf("http://%v/", d.addr))
	if body, err := naiveGetShort(naiveSearch(t, forged)); err == nil {
		t.Fatalf("the naive client read %q: this is no attack", body)
	}
	checkNoLeaks(t, func() {
		b := newBackend(t, forged, gw.SSDP())
		checkMaps(t, gw, b)
		_ = b.Close()
	})
}
