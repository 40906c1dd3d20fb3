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

// startSSDPResponder starts a host that responds to each search with a location.
func startSSDPResponder(t *testing.T, from netip.Addr, location string) netip.AddrPort {
	t.Helper()
	response := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"+
		"USN: uuid:0::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n", location)
	return startUDPServer(t, netip.AddrPortFrom(from, 0), func(conn *net.UDPConn, _ []byte, to netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort(response, to)
	})
}

// newBackend returns a UPnP backend that is configured with the gateway's address
// and with the addresses that searches are sent to.
func newBackend(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: gatewayAddr, SSDP: ssdp, Wait: 2 * time.Second, Notify: anyLocalPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// newShortSearchBackend returns a backend that waits only 300 ms for responses to a
// search.
func newShortSearchBackend(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: gatewayAddr, SSDP: ssdp, Wait: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// checkMaps maps a port and checks that the gateway has the mapping.
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

// TestLocationOnOtherHost checks responses to a search that name a host that trusts
// its neighbours, in LOCATION or in the description. A client that followed them
// would send the attacker's requests from behind the firewall.
func TestLocationOnOtherHost(t *testing.T) {
	for name, setup := range map[string]func(target *device, attackerDevice *device) (location, description string){
		"LOCATION": func(target, _ *device) (string, string) { return fmt.Sprintf("http://%v/", target.addr), "" },
		"LOCATION with a harmful path": func(target, _ *device) (string, string) {
			return fmt.Sprintf("http://%v/reboot?now=1&x=%%0d%%0aHost:%%20x", target.addr), ""
		},
		"redirect": func(target, attackerDevice *device) (string, string) {
			return fmt.Sprintf("http://%v/", attackerDevice.addr), fmt.Sprintf("HTTP/1.1 302 Found\r\nLocation: http://%v/\r\nContent-Length: 0\r\n\r\n", target.addr)
		},
		"control URL": func(target, attackerDevice *device) (string, string) {
			return fmt.Sprintf("http://%v/", attackerDevice.addr), string(httpOK(descriptionOf("", fmt.Sprintf("http://%v/ctl", target.addr))))
		},
		"control URL without a scheme": func(target, attackerDevice *device) (string, string) {
			return fmt.Sprintf("http://%v/", attackerDevice.addr), string(httpOK(descriptionOf("", fmt.Sprintf("//%v/ctl", target.addr))))
		},
		"URLBase": func(target, attackerDevice *device) (string, string) {
			return fmt.Sprintf("http://%v/", attackerDevice.addr), string(httpOK(descriptionOf(fmt.Sprintf("http://%v/", target.addr), "/ctl")))
		},
	} {
		for _, from := range []netip.Addr{attacker, gatewayAddr} {
			for _, victim := range []netip.Addr{bystander, anyLocalPort.Addr()} {
				t.Run(fmt.Sprintf("%s from %v to %v", name, from, victim), func(t *testing.T) {
					gw := startGateway(t, gatewaytest.Config{})
					target := startDevice(t, victim, func(d *device, conn net.Conn, _ string) { _ = d.write(conn, httpOK("a secret")) })
					var description string
					attackerDevice := startDevice(t, from, func(d *device, conn net.Conn, request string) {
						if strings.HasPrefix(request, "GET ") {
							_ = d.write(conn, []byte(description))
						}
					})
					var location string
					location, description = setup(target, attackerDevice)
					forged := startSSDPResponder(t, from, location)

					_ = naiveDescribe(naiveSearch(t, forged))
					naiveCount := target.served.Load()
					if naiveCount == 0 {
						t.Fatal("the naive client contacted no host: the attack has no effect")
					}
					checkNoLeaks(t, func() {
						b := newBackend(t, forged, gw.SSDP())
						checkMaps(t, gw, b)
						_ = b.Close()
						if victim == bystander {
							all := newShortSearchBackend(t, forged, gw.SSDP())
							if _, err := all.Gateways(t.Context()); err != nil && !errors.Is(err, backends.ErrNoReply) { // ErrNoReply if the short search ends first
								t.Error(err)
							}
							_ = all.Close()
						}
					})
					if n := target.served.Load() - naiveCount; n != 0 {
						t.Errorf("an uninvolved host had %d connections", n)
					}
				})
			}
		}
	}
}

// TestProxy checks that the backend ignores the environment's proxy. Otherwise, an
// attacker who can set the environment could read and forge the traffic with the
// gateway.
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

// crowdAddr returns the address of the i-th device of a crowd.
func crowdAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 2, byte(i >> 8), byte(i)}) }

// startCrowd starts devices that claim to be gateways. They respond to one search
// each with several descriptions. Each is connected and works, but has a private
// external address.
func startCrowd(t *testing.T, n int) (ssdp netip.AddrPort, all []*device) {
	t.Helper()
	var conns []*net.UDPConn
	for i := range n {
		all = append(all, startDevice(t, crowdAddr(i), respondAsPrivateGateway))
		conns = append(conns, listenUDP(t, netip.AddrPortFrom(crowdAddr(i), 0)))
	}
	var mu sync.Mutex
	responded := map[netip.AddrPort]bool{}
	return startUDPServer(t, netip.AddrPortFrom(attacker, 0), func(_ *net.UDPConn, _ []byte, from netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		if responded[from] {
			return
		}
		responded[from] = true
		for i, conn := range conns {
			for j := range 3 {
				_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: http://%v/%d\r\n"+
					"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:%d-%d\r\n\r\n", all[i].addr, j, i, j), from)
			}
		}
	}), all
}

// respondAsPrivateGateway responds as a gateway with a private external address
// does.
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

// TestManyGateways checks a search that a thousand gateways respond to. The backend
// finds the gateway of the default route, and queries only a limited number of the
// others.
func TestManyGateways(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	ssdp, all := startCrowd(t, crowdSize)
	if n := naiveCrowd(t, ssdp, crowdSize/2); n < crowdSize/2 {
		t.Fatalf("the naive client would query %d devices: the attack has no effect", n)
	}
	checkNoLeaks(t, func() {
		b := newBackend(t, ssdp, gw.SSDP())
		checkMaps(t, gw, b)
		_ = b.Close()
		b = newShortSearchBackend(t, ssdp)
		if _, err := b.Gateways(t.Context()); err != nil && !errors.Is(err, backends.ErrNoReply) { // ErrNoReply if the short search ends first
			t.Error(err)
		}
		_ = b.Close()
	})
	connections, contacted := 0, 0
	for _, d := range all {
		connections += int(d.served.Load())
		contacted += int(min(d.served.Load(), 1))
	}
	// Each search fetches 16 descriptions, and sends two requests to the service of
	// each.
	if connections > 2*16*3 || contacted > 2*16 {
		t.Errorf("%d devices of the crowd had %d connections", contacted, connections)
	}
}

// naiveCrowd returns how many devices a client would query if it queried all that
// respond. It stops at limit devices.
func naiveCrowd(t *testing.T, ssdp netip.AddrPort, limit int) int {
	t.Helper()
	conn := listenUDP(t, anyLocalPort)
	defer conn.Close()
	_ = conn.SetReadBuffer(8 << 20)
	_, _ = conn.WriteToUDPAddrPort([]byte("M-SEARCH * HTTP/1.1\r\n\r\n"), ssdp)
	seen := map[string]bool{}
	b := make([]byte, 8<<10)
	_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
	for len(seen) < limit {
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

// TestManyDescriptionsOnOneHost checks the same for one host, and for the gateway's
// own address: the number of requests to it is limited too.
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
				t.Fatalf("the naive client would send %d requests: the attack has no effect", n)
			}
			checkNoLeaks(t, func() {
				b := newShortSearchBackend(t, ssdp)
				if found, err := b.Gateways(t.Context()); err == nil {
					t.Errorf("found %+v", found)
				}
				_ = b.Close()
				if from == attacker { // an attacker with the gateway's address can use up the gateway's limit
					b = newBackend(t, ssdp, gw.SSDP())
					checkMaps(t, gw, b)
					_ = b.Close()
				}
			})
			if n := d.served.Load(); n > 2*8*2 { // eight descriptions of the gateway, each fetched twice
				t.Errorf("%v had %d connections", from, n)
			}
		})
	}
}

// TestSlowDevicesBeforeGateway checks that devices that keep connections open
// without a response do not delay requests to the gateway, even if the gateway is
// the last to respond.
func TestSlowDevicesBeforeGateway(t *testing.T) {
	const slow = 8 // devices, with two descriptions each
	gw := startGateway(t, gatewaytest.Config{})
	held := make(chan struct{}, 100)
	var ssdp []netip.AddrPort
	for i := range slow {
		d := startDevice(t, crowdAddr(i), func(_ *device, conn net.Conn, _ string) {
			held <- struct{}{}
			_, _ = conn.Read(make([]byte, 1)) // until the client closes the connection
		})
		for j := range 2 {
			ssdp = append(ssdp, startSSDPResponder(t, crowdAddr(i), fmt.Sprintf("http://%v/%d", d.addr, j)))
		}
	}
	// A naive client queries the devices one after another, and does not reach the
	// gateway.
	if body, err := naiveGetShort(naiveSearch(t, ssdp[0])); err == nil {
		t.Fatalf("the naive client read %q: the attack has no effect", body)
	}
	<-held
	all := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Service == "ssdp" }, Hold: all})
	go func() {
		defer close(all)
		for range slow { // as many as are queried at once
			<-held
		}
	}()
	checkNoLeaks(t, func() {
		b := newBackend(t, append(ssdp, gw.SSDP())...)
		checkMaps(t, gw, b)
		_ = b.Close()
	})
}

// TestSlowDeviceBeforeFallbackSearch checks gateways that respond only to a search
// for all devices. The backend starts this search if the first one finds no
// gateway. A device that sends its description slowly must not prevent it.
func TestSlowDeviceBeforeFallbackSearch(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true, Match: func(r gatewaytest.Request) bool {
		return r.Service == "ssdp" && bytes.Contains(r.Raw, []byte("InternetGatewayDevice"))
	}})
	d := startDevice(t, attacker, func(_ *device, conn net.Conn, _ string) { _, _ = conn.Read(make([]byte, 1)) })
	forged := startSSDPResponder(t, attacker, fmt.Sprintf("http://%v/", d.addr))
	if body, err := naiveGetShort(naiveSearch(t, forged)); err == nil {
		t.Fatalf("the naive client read %q: the attack has no effect", body)
	}
	checkNoLeaks(t, func() {
		b := newBackend(t, forged, gw.SSDP())
		checkMaps(t, gw, b)
		_ = b.Close()
	})
}
