package attack_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
)

// answersSearch is who answers each search with a location.
func answersSearch(t *testing.T, from netip.Addr, location string) netip.AddrPort {
	t.Helper()
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"+
		"USN: uuid:0::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n", location)
	return answering(t, netip.AddrPortFrom(from, 0), func(conn *net.UDPConn, _ []byte, to netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort(answer, to)
	})
}

// igd is the backend, told of the gateway and of where searches go.
func igd(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: routerAddr, SSDP: ssdp, Wait: 2 * time.Second, Notify: nowhere})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// everyone is a backend that does not wait long for all who answer.
func everyone(t *testing.T, ssdp ...netip.AddrPort) *upnp.Backend {
	t.Helper()
	b, err := upnp.New(upnp.Config{Gateway: routerAddr, SSDP: ssdp, Wait: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// mapsAt maps a port and finds it at the gateway.
func mapsAt(t *testing.T, gw *gatewaytest.Gateway, b *upnp.Backend) {
	t.Helper()
	m, err := b.Map(t.Context(), web)
	if err != nil || m.External != netip.AddrPortFrom(gw.External(), 8080) || m.Gateway.Addr() != routerAddr {
		t.Errorf("Map: %+v, %v", m, err)
	}
	if n := len(gw.Table()); n != 1 {
		t.Errorf("the gateway has %d mappings", n)
	}
}

// TestLocationElsewhere: an answer to a search names a host that trusts its
// neighbours, in its LOCATION or in what is found there. Whoever follows is the
// attacker's hands behind the firewall.
func TestLocationElsewhere(t *testing.T) {
	for name, attack := range map[string]func(prey *device, own *device) (location, description string){
		"LOCATION": func(prey, _ *device) (string, string) { return fmt.Sprintf("http://%v/", prey.addr), "" },
		"LOCATION, with a path that does harm": func(prey, _ *device) (string, string) {
			return fmt.Sprintf("http://%v/reboot?now=1&x=%%0d%%0aHost:%%20x", prey.addr), ""
		},
		"redirect": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), fmt.Sprintf("HTTP/1.1 302 Found\r\nLocation: http://%v/\r\nContent-Length: 0\r\n\r\n", prey.addr)
		},
		"control URL": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(http200(described("", fmt.Sprintf("http://%v/ctl", prey.addr))))
		},
		"control URL without a scheme": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(http200(described("", fmt.Sprintf("//%v/ctl", prey.addr))))
		},
		"URLBase": func(prey, own *device) (string, string) {
			return fmt.Sprintf("http://%v/", own.addr), string(http200(described(fmt.Sprintf("http://%v/", prey.addr), "/ctl")))
		},
	} {
		for _, from := range []netip.Addr{attacker, routerAddr} {
			for _, victim := range []netip.Addr{bystander, nowhere.Addr()} {
				t.Run(fmt.Sprintf("%s from %v to %v", name, from, victim), func(t *testing.T) {
					gw := router(t, gatewaytest.Config{})
					prey := serve(t, victim, func(d *device, conn net.Conn, _ string) { _ = d.write(conn, http200("a secret")) })
					var description string
					own := serve(t, from, func(d *device, conn net.Conn, request string) {
						if strings.HasPrefix(request, "GET ") {
							_ = d.write(conn, []byte(description))
						}
					})
					var location string
					location, description = attack(prey, own)
					forged := answersSearch(t, from, location)

					_ = naiveDescribe(naiveSearch(t, forged))
					tricked := prey.served.Load()
					if tricked == 0 {
						t.Fatal("the naive client went nowhere: this is no attack")
					}
					leaves(t, func() {
						b := igd(t, forged, gw.SSDP())
						mapsAt(t, gw, b)
						_ = b.Close()
						if victim == bystander {
							all := everyone(t, forged, gw.SSDP())
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
	gw := router(t, gatewaytest.Config{})
	proxy := canary(t, bystander)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(name, fmt.Sprintf("http://%v/", proxy.addr))
	}
	b := igd(t, gw.SSDP())
	mapsAt(t, gw, b)
}
