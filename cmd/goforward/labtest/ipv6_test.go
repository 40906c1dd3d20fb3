package labtest

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// lanAddr6 returns a port of the global IPv6 address of the home's host. It is the same
// inside and outside.
func lanAddr6(home *lab.HomeNet, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(home.Lan6, port)
}

// wantPinholes checks that the router's IPv6 firewall has this many pinholes.
func wantPinholes(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if pinholes := home.Pinholes(t); len(pinholes) != want {
		t.Errorf("the router has %d pinholes, want %d:\n%s", len(pinholes), want, strings.Join(pinholes, "\n"))
	}
}

// routeViaLinkLocal changes the default route to the router's link-local address, as
// router advertisements do.
func routeViaLinkLocal(t *testing.T, home *lab.HomeNet) netip.Addr {
	t.Helper()
	out := home.Router.Exec(t, "ip", "-6", "-o", "addr", "show", "dev", "lan0", "scope", "link")
	for _, field := range strings.Fields(out) {
		if prefix, err := netip.ParsePrefix(field); err == nil {
			home.Lan.Exec(t, "ip", "-6", "route", "replace", "default", "via", prefix.Addr().String(), "dev", "eth0")
			return prefix.Addr()
		}
	}
	t.Fatalf("the router has no link-local address: %s", out)
	return netip.Addr{}
}

// TestPinhole checks that bytes arrive over IPv6 while the pinhole is open, and at no
// other time.
func TestPinhole(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"a global gateway":     {IPv6: true},
		"a link-local gateway": {IPv6: true},
	} {
		for option, networks := range map[string][]string{
			"tcp":  {"tcp"},
			"both": {"tcp", "udp"},
		} {
			t.Run(name+", "+option, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, "ipv6: a pinhole by "+name+", "+option)
				home := lab.Home(t, router)
				gateway := home.Gateway6
				if name == "a link-local gateway" {
					gateway = routeViaLinkLocal(t, home)
				}
				testPinhole(t, home, gateway, option, networks)
			})
		}
	}
}

func testPinhole(t *testing.T, home *lab.HomeNet, gateway netip.Addr, o string, networks []string) {
	t.Helper()
	var echoes []lab.Echo
	for _, network := range networks {
		echo := home.Lan.Echo(t, network, lanAddr6(home, 8080).String())
		home.DoesNotReach(t, echo, lanAddr6(home, 8080))
		echoes = append(echoes, echo)
	}
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(option{Name: o, Port: 8080}, overIPv6)
	wantPCP(t, m)
	if m.External != lanAddr6(home, 8080) || m.Internal != m.External || m.Scope != "public" ||
		m.Gateway.Addr().WithZone("") != gateway || len(m.Grants) != len(networks) {
		t.Errorf("%+v", m.state)
	}
	wantPinholes(t, home, len(networks))
	for _, echo := range echoes {
		home.Reaches(t, echo, m.External)
	}
	f.disable()
	wantPinholes(t, home, 0)
	for _, echo := range echoes {
		home.DoesNotReach(t, echo, lanAddr6(home, 8080))
	}
	f.close()
	f.exit()
}

// TestPinholeAdvertised checks a host that has its address and its default route, to a
// link-local address, from router advertisements, as in most homes.
func TestPinholeAdvertised(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "ipv6: a pinhole by a gateway that advertises itself")
	home := lab.Home(t, lab.Router{IPv6: true})
	home.Lan.Exec(t, "ip", "-6", "route", "del", "default")
	home.Lan.Exec(t, "ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global")
	home.Lan.Sysctl(t, "net.ipv6.conf.eth0.accept_ra", "2")
	advertise(t, home.Router)
	waitUntil(t, maxWait, "no router advertisement arrived", func() bool {
		return strings.Contains(home.Lan.Exec(t, "ip", "-6", "route", "show", "default"), "via fe80::") &&
			home.Lan.Exec(t, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global", "-tentative") != ""
	})

	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), overIPv6)
	wantPCP(t, m)
	if gw := m.Gateway.Addr(); !gw.IsLinkLocalUnicast() || gw.Zone() == "" || m.External.Addr() == home.Lan6 {
		t.Errorf("%+v", m.state)
	}
	echo := home.Lan.Echo(t, "tcp", m.Internal.String())
	home.Reaches(t, echo, m.External)
	f.disable()
	wantPinholes(t, home, 0)
	home.DoesNotReach(t, echo, m.External)
}

// advertise makes the router send router advertisements until the test ends.
func advertise(t *testing.T, router *lab.Host) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := router.Command(ctx, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0",
		"--interface=lan0", "--enable-ra", "--dhcp-range=::,constructor:lan0,ra-only,64,300",
		"--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"))
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("dnsmasq: %s", out)
		}
	})
}

// TestPinholeRenew checks that a pinhole is renewed for several lifetimes, and that a
// pinhole that is not renewed expires.
func TestPinholeRenew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "ipv6: a pinhole renewed for several lifetimes")
	home := lab.Home(t, lab.Router{IPv6: true})
	f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
	reference := enableReference(t, home, f, overIPv6)
	renewed, unrenewed := f.enable(tcp(8080), overIPv6), f.enable(tcp(8081), overIPv6, once)
	f.wantEvent(forward.EventMapped)
	f.wantEvent(forward.EventMapped)
	echo, unrenewedEcho := home.Lan.Echo(t, "tcp", lanAddr6(home, 8080).String()), home.Lan.Echo(t, "tcp", lanAddr6(home, 8081).String())
	home.Reaches(t, unrenewedEcho, unrenewed.External)
	wait := watchReachability(t, home, renewed.External, reference, watchDuration, echo)
	waitForExpiry(t, home, unrenewedEcho, unrenewed)
	home.DoesNotReach(t, unrenewedEcho, unrenewed.External)
	wait()
	home.Reaches(t, echo, renewed.External)
	wantPinholes(t, home, 2)
	f.wantNoEvent()
	f.close() // the router may delete it only at the end of its lifetime: see TestPinholeRefreshed
	waitUntil(t, shortLease+3*time.Second, "the pinhole stays", func() bool { return len(home.Pinholes(t)) == 1 })
	home.DoesNotReach(t, echo, renewed.External)
}

// TestPinholeWithMapping checks a mapping over IPv4 and a pinhole over IPv6 for the same port
// in one Forwarder.
//
// It does not run in parallel: on a busy machine, the router can be late with its reply to NAT-PMP,
// and PCP is chosen.
func TestPinholeWithMapping(t *testing.T) {
	lab.Scenario(t, "ipv6: a pinhole beside a mapping")
	home := lab.Home(t, lab.Router{IPv6: true})
	four, six := home.Lan.Echo(t, "tcp", "192.168.77.2:8080"), home.Lan.Echo(t, "tcp", lanAddr6(home, 8080).String())
	f := newForwarder(t, home.Lan, config{})
	m4, m6 := f.enable(tcp(8080)), f.enable(tcp(8080), overIPv6)
	if m4.Backend != "natpmp" || m6.Backend != "pcp" {
		t.Errorf("granted by %s and %s", m4.Backend, m6.Backend)
	}
	home.Reaches(t, four, m4.External)
	home.Reaches(t, six, m6.External)
	m4.close()
	home.DoesNotReach(t, four, externalAddr(home, 8080))
	home.Reaches(t, six, m6.External)
	wantRules(t, home, 0)
	m6.close()
	home.DoesNotReach(t, six, lanAddr6(home, 8080))
	wantPinholes(t, home, 0)
}

// TestPinholePrivacy checks that the pinhole is for the permanent address of the host,
// although the kernel prefers a temporary address as source.
func TestPinholePrivacy(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "ipv6: a pinhole for a host with a temporary address")
	home := lab.Home(t, lab.Router{IPv6: true})
	home.Lan.Sysctl(t, "net.ipv6.conf.eth0.use_tempaddr", "2")
	home.Lan.Exec(t, "ip", "addr", "del", home.Lan6.String()+"/64", "dev", "eth0")
	home.Lan.Exec(t, "ip", "addr", "add", home.Lan6.String()+"/64", "dev", "eth0", "mngtmpaddr", "nodad",
		"valid_lft", "3600", "preferred_lft", "1800")
	home.Lan.Exec(t, "ip", "-6", "route", "replace", "default", "via", home.Gateway6.String(), "dev", "eth0")
	if temporary := home.Lan.Exec(t, "ip", "-6", "-o", "addr", "show", "dev", "eth0", "temporary"); temporary == "" {
		t.Skip("this kernel makes no temporary addresses")
	}
	waitUntil(t, maxWait, "the kernel does not prefer the temporary address", func() bool {
		out := home.Lan.Exec(t, "ip", "-6", "route", "get", "2a0c:7777:2::2")
		return !strings.Contains(out, "src "+home.Lan6.String()+" ")
	})
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), overIPv6)
	if m.External != lanAddr6(home, 8080) {
		t.Errorf("the pinhole is for %v, want %v", m.External, lanAddr6(home, 8080))
	}
	home.Reaches(t, home.Lan.Echo(t, "tcp", lanAddr6(home, 8080).String()), lanAddr6(home, 8080))
	f.disable()
	wantPinholes(t, home, 0)
}

// TestPinholeUnsupported checks that Enable fails, without a long wait, if there is no IPv6
// route or no protocol for IPv6.
func TestPinholeUnsupported(t *testing.T) {
	t.Parallel()
	t.Run("no route", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "ipv6: a pinhole, but no IPv6")
		home := lab.Home(t, lab.Router{})
		f := newForwarder(t, home.Lan, config{})
		f.wantEnableError([]error{forward.ErrNoGateway}, tcp(8080), overIPv6)
		wantRules(t, home, 0)
	})
	t.Run("nothing for IPv6", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "ipv6: a pinhole, but a router without PCP and UPnP")
		home := lab.Home(t, lab.Router{IPv6: true, NoPCP: true, NoUPnP: true})
		f := newForwarder(t, home.Lan, config{DiscoveryTimeout: time.Second})
		took := f.wantEnableError([]error{backends.ErrNoReply, forward.ErrNoGateway}, tcp(8080), overIPv6)
		if took > time.Second+tolerance {
			t.Errorf("the error was returned after %v", took)
		}
		wantRules(t, home, 0)
	})
}

// TestPinholeRestart checks a router that announces its restart over IPv6.
func TestPinholeRestart(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "ipv6: the router restarts, "+name)
			router := router
			router.IPv6 = true
			home := lab.Home(t, router)
			routeViaLinkLocal(t, home)
			home.Router.Rule(t, "output", `ip daddr { 224.0.0.1, 239.255.255.250 } drop`)
			echo := home.Lan.Echo(t, "tcp", lanAddr6(home, 8080).String())
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(tcp(8080), overIPv6)
			f.wantEvent(forward.EventMapped)
			home.Reaches(t, echo, m.External)
			waitForEpoch(t, home)
			powerOff(t, home)
			home.DoesNotReach(t, echo, m.External)
			home.Daemon.Start(t)
			took := waitReachable(t, home, echo, lanAddr6(home, 8080), maxWait)
			t.Logf("the first bytes arrived %v after the router was ready", took)
			if took > maxRestoreTime {
				t.Errorf("the first bytes arrived %v after the router was ready", took)
			}
			m.wait(maxWait)
			f.disable()
			wantPinholes(t, home, 0)
		})
	}
}

// TestPinholeRefreshed checks that a renewed pinhole is closed. When this router renews a
// pinhole, the router loses the nonce, and then refuses to delete the pinhole. But a request
// can still shorten the lifetime.
func TestPinholeRefreshed(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "ipv6: a pinhole, refreshed and closed")
	home := lab.Home(t, lab.Router{IPv6: true})
	echo := home.Lan.Echo(t, "tcp", lanAddr6(home, 8080).String())
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), overIPv6)
	m.refresh()
	home.Reaches(t, echo, m.External)
	wantPinholes(t, home, 1)
	got := f.try(call{Op: "disable", Forwarder: f.n})
	if got.Failure != nil {
		t.Error(got.Failure)
	}
	waitUntil(t, shortLease+3*time.Second, "the pinhole stays", func() bool { return len(home.Pinholes(t)) == 0 })
	home.DoesNotReach(t, echo, m.External)
}
