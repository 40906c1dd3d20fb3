package discover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// inNamespace and ip are short names for functions of package lab.
var inNamespace, ip = lab.Inside, lab.IP

// newTwoLinks turns this namespace into a host with two networks. The names of the
// interfaces do not contain their indexes. The kernel generates no IPv6 addresses, so that
// no event occurs later than the command that causes it.
func newTwoLinks(t *testing.T) {
	t.Helper()
	for _, name := range []string{"default", "all"} {
		path := "/proc/sys/net/ipv6/conf/" + name + "/addr_gen_mode"
		if err := os.WriteFile(path, []byte("1"), 0); err != nil { // no generated addresses
			t.Logf("%s: %v", path, err)
		}
	}
	ip(t, `
		link set lo up
		link add one type veth peer name onepeer
		link add two type veth peer name twopeer
		link set one up
		link set onepeer up
		link set two up
		link set twopeer up
		addr add 10.1.0.5/24 dev one
		addr add 10.2.0.5/24 dev two
		-6 addr add 2001:db8:1::5/64 dev one nodad
		-6 addr add 2001:db8:2::5/64 dev two nodad`)
}

func interfaceIndexOf(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/sys/class/net/" + name + "/ifindex")
	if err != nil {
		// The mounted /sys may belong to the previous network namespace.
		out, err := exec.CommandContext(t.Context(), "ip", "-o", "link", "show", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		b = out
	}
	var n int
	if _, err := fmt.Sscanf(string(b), "%d", &n); err != nil {
		t.Fatalf("index of %s: %v", name, err)
	}
	return n
}

func requireTun(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED, NOTHING WAS TESTED: no tunnels: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// describe formats a Gateway for comparison with the texts of the tests.
func describe(g Gateway) string {
	return fmt.Sprintf("%v from %v on %s metric %d", g.Addr, g.Local, g.Interface, g.Metric)
}

func TestNamespaceLookups(t *testing.T) {
	tests := []struct {
		name   string
		setup  string
		v4, v6 string // as describe formats them, or the reason in the error
		list   []string
	}{
		{
			name: "offline",
			v4:   "network is unreachable",
			v6:   "network is unreachable",
		},
		{
			name: "dual stack",
			setup: `
				route add default via 10.1.0.1 dev one metric 100
				-6 route add default via fe80::1 dev one metric 50`,
			v4: "10.1.0.1 from 10.1.0.5 on one metric 100",
			v6: "fe80::1%one from 2001:db8:1::5 on one metric 50",
			list: []string{
				"10.1.0.1 from 10.1.0.5 on one metric 100",
				"fe80::1%one from 2001:db8:1::5 on one metric 50",
			},
		},
		{
			name: "lower metric",
			setup: `
				route add default via 10.1.0.1 dev one metric 200
				route add default via 10.2.0.1 dev two metric 100
				-6 route add default via 2001:db8:1::1 dev one metric 200
				-6 route add default via 2001:db8:2::1 dev two metric 100`,
			v4: "10.2.0.1 from 10.2.0.5 on two metric 100",
			v6: "2001:db8:2::1 from 2001:db8:2::5 on two metric 100",
			list: []string{
				"10.2.0.1 from 10.2.0.5 on two metric 100",
				"10.1.0.1 from 10.1.0.5 on one metric 200",
				"2001:db8:2::1 from 2001:db8:2::5 on two metric 100",
				"2001:db8:1::1 from 2001:db8:1::5 on one metric 200",
			},
		},
		{
			name: "policy rule",
			setup: `
				route add default via 10.1.0.1 dev one
				route add default via 10.2.0.1 dev two table 77 metric 9
				rule add pref 100 lookup 77
				-6 route add default via fe80::1 dev one
				-6 route add default via fe80::2 dev two table 77 metric 9
				-6 rule add pref 100 lookup 77`,
			v4: "10.2.0.1 from 10.2.0.5 on two metric 9",
			v6: "fe80::2%two from 2001:db8:2::5 on two metric 9",
			list: []string{
				"10.2.0.1 from 10.2.0.5 on two metric 9",
				"10.1.0.1 from 10.1.0.5 on one metric 0",
				"fe80::2%two from 2001:db8:2::5 on two metric 9",
				"fe80::1%one from 2001:db8:1::5 on one metric 1024",
			},
		},
		{
			name: "a policy table that no rule uses",
			setup: `
				route add default via 10.1.0.1 dev one metric 900
				route add default via 10.2.0.1 dev two table 77`,
			v4: "10.1.0.1 from 10.1.0.5 on one metric 900",
			v6: "network is unreachable",
			list: []string{
				"10.1.0.1 from 10.1.0.5 on one metric 900",
				"10.2.0.1 from 10.2.0.5 on two metric 0",
			},
		},
		{
			name: "tunnel without a next hop",
			setup: `
				tuntap add dev tun0 mode tun
				link set tun0 up
				addr add 10.9.0.2/32 dev tun0
				-6 addr add fd09::2/128 dev tun0 nodad
				route add default dev tun0
				-6 route add default dev tun0 metric 1`,
			v4: "invalid IP from 10.9.0.2 on tun0 metric 0",
			v6: "invalid IP from fd09::2 on tun0 metric 1",
			list: []string{
				"invalid IP from 10.9.0.2 on tun0 metric 0",
				"invalid IP from fd09::2 on tun0 metric 1",
			},
		},
		{
			name: "a link without a next hop",
			setup: `
				route add default dev one
				-6 route add default dev one`,
			v4: "invalid IP from 10.1.0.5 on one metric 0",
			v6: "invalid IP from 2001:db8:1::5 on one metric 1024",
			list: []string{
				"invalid IP from 10.1.0.5 on one metric 0",
				"invalid IP from 2001:db8:1::5 on one metric 1024",
			},
		},
		{
			name: "VPN with two routes to one half of the internet each",
			setup: `
				route add default via 10.1.0.1 dev one metric 100
				route add 0.0.0.0/1 via 10.2.0.9 dev two
				route add 128.0.0.0/1 via 10.2.0.9 dev two`,
			v4: "10.2.0.9 from 10.2.0.5 on two metric 0",
			v6: "network is unreachable",
			list: []string{
				"10.2.0.9 from 10.2.0.5 on two metric 0",
				"10.1.0.1 from 10.1.0.5 on one metric 100",
			},
		},
		{
			name: "unreachable",
			setup: `
				route add unreachable default
				-6 route add unreachable default`,
			v4: "unreachable route",
			v6: "unreachable route",
		},
		{
			name: "blackhole",
			setup: `
				route add blackhole default
				-6 route add blackhole default`,
			v4: "blackhole route",
			v6: "blackhole route",
		},
		{
			name: "prohibit",
			setup: `
				route add prohibit default
				-6 route add prohibit default`,
			v4: "prohibited route",
			v6: "prohibited route",
		},
		{
			name: "route with a source address",
			setup: `
				addr add 10.1.0.6/24 dev one
				-6 addr add 2001:db8:1::6/64 dev one nodad
				route add default via 10.1.0.1 dev one src 10.1.0.6
				-6 route add default via fe80::1 dev one src 2001:db8:1::6`,
			v4: "10.1.0.1 from 10.1.0.6 on one metric 0",
			v6: "fe80::1%one from 2001:db8:1::6 on one metric 1024",
			list: []string{
				"10.1.0.1 from 10.1.0.6 on one metric 0",
				"fe80::1%one from 2001:db8:1::6 on one metric 1024",
			},
		},
		{
			name:  "IPv4 through an IPv6 next hop",
			setup: `-4 route add default via inet6 fe80::1 dev one`,
			v4:    "fe80::1%one from 10.1.0.5 on one metric 0",
			v6:    "network is unreachable",
			list:  []string{"fe80::1%one from 10.1.0.5 on one metric 0"},
		},
		{
			name: "link-local address only",
			setup: `
				-6 addr flush dev one
				-6 addr flush dev two
				-6 addr add fe80::5/64 dev one nodad
				-6 route add default via fe80::1 dev one`,
			v4:   "network is unreachable",
			v6:   "fe80::1%one from fe80::5%one on one metric 1024",
			list: []string{"fe80::1%one from fe80::5%one on one metric 1024"},
		},
		{
			name: "no address",
			setup: `
				-6 addr flush dev one
				-6 addr flush dev two
				-6 route add default via fe80::1 dev one`,
			v4:   "network is unreachable",
			v6:   "no address to send from on one",
			list: []string{"fe80::1%one from invalid IP on one metric 1024"},
		},
		{
			name:  "next hop object",
			setup: "nexthop add id 5 via 10.1.0.1 dev one\nroute add default nhid 5 metric 3",
			v4:    "10.1.0.1 from 10.1.0.5 on one metric 3",
			v6:    "network is unreachable",
			list:  []string{"10.1.0.1 from 10.1.0.5 on one metric 3"},
		},
	}
	check := func(t *testing.T, got Gateway, err error, want string) {
		t.Helper()
		switch {
		case err == nil:
			if describe(got) != want {
				t.Errorf("got %s, want %s", describe(got), want)
			}
			if index := interfaceIndexOf(t, got.Interface); got.Index != index {
				t.Errorf("index of %s is %d, not %d", got.Interface, index, got.Index)
			}
		case !errors.Is(err, ErrNoRoute) || !strings.Contains(err.Error(), want):
			t.Errorf("got %q, want %s", err, want)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if !inNamespace(t) {
				return
			}
			newTwoLinks(t)
			if strings.Contains(tt.setup, "tuntap") {
				requireTun(t)
			}
			ip(t, tt.setup)
			g, err := Default()
			check(t, g, err, tt.v4)
			g, err = Default6()
			check(t, g, err, tt.v6)
			list, err := Gateways()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, g := range list {
				got = append(got, describe(g))
			}
			equal(t, got, tt.list)
		})
	}
}

func TestNamespaceMultipath(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newTwoLinks(t)
	ip(t, "route add default metric 7 nexthop via 10.1.0.1 dev one nexthop via 10.2.0.1 dev two weight 3")
	g, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	first, second := "10.1.0.1 from 10.1.0.5 on one metric 7", "10.2.0.1 from 10.2.0.5 on two metric 7"
	if describe(g) != first {
		first, second = second, first
	}
	list, err := Gateways()
	if err != nil || len(list) != 2 || describe(g) != first || describe(list[0]) != first || describe(list[1]) != second {
		t.Errorf("Default %s, Gateways %+v, %v", describe(g), list, err)
	}
}

func TestNamespaceRoute(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newTwoLinks(t)
	ip(t, `
		-6 addr add fe80::5/64 dev two nodad
		route add 192.0.2.0/24 via 10.2.0.1 dev two metric 4`)
	tests := []struct{ dst, want string }{
		{"192.0.2.7", "10.2.0.1 from 10.2.0.5 on two metric 4"},
		{"::ffff:192.0.2.7", "10.2.0.1 from 10.2.0.5 on two metric 4"},
		{"10.1.0.77", "invalid IP from 10.1.0.5 on one metric 0"},
		{"2001:db8:2::77", "invalid IP from 2001:db8:2::5 on two metric 256"},
		{"fe80::77%two", "invalid IP from fe80::5%two on two metric 256"},
		{"10.1.0.5", "it is this host"},
		{"2001:db8:1::5", "it is this host"},
		{"fe80::5%two", "it is this host"},
		{"10.1.0.255", "broadcast address"},
		{"224.0.0.251", "network is unreachable"},
		{"fe80::77%gone", "no such network interface"},
	}
	for _, tt := range tests {
		g, err := Route(netip.MustParseAddr(tt.dst))
		switch {
		case err == nil && describe(g) != tt.want:
			t.Errorf("%s: got %s, want %s", tt.dst, describe(g), tt.want)
		case err != nil && (!errors.Is(err, ErrNoRoute) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %q, want %s", tt.dst, err, tt.want)
		}
	}
}

// TestNamespaceWatch opens a new watcher before each change, so that only this change can
// cause the call of notify.
func TestNamespaceWatch(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newTwoLinks(t)
	ip(t, "route add default via 10.1.0.1 dev one metric 10")
	for _, change := range []string{
		"route add default via 10.2.0.1 dev two metric 5",
		"route del default via 10.1.0.1 dev one",
		"-6 route add default via fe80::1 dev one",
		"addr add 10.1.0.6/24 dev one",
		"addr del 10.1.0.6/24 dev one",
		"-6 addr add 2001:db8:1::6/64 dev one nodad",
		"link set two down",
		"link set two mtu 1400",
		"rule add pref 100 lookup 77",
		"-6 rule add pref 100 lookup 77",
		"nexthop add id 5 via 10.1.0.1 dev one",
	} {
		t.Run(change, func(t *testing.T) {
			w, err := openWatcher()
			if err != nil {
				t.Fatal(err)
			}
			ip(t, change)
			ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("notify was not called"))
			defer cancel()
			ctx, stop := context.WithCancelCause(ctx)
			errNotified := errors.New("notify was called")
			if err := w.run(ctx, func() { stop(errNotified) }); !errors.Is(err, errNotified) {
				t.Error(err)
			}
		})
	}
}

// TestNamespaceWatchCoalesces checks that changes in a burst, and changes while notify runs,
// cause few calls that do not overlap.
func TestNamespaceWatchCoalesces(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newTwoLinks(t)
	w, err := openWatcher()
	if err != nil {
		t.Fatal(err)
	}
	var calls, running atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	called, done := make(chan struct{}), make(chan error)
	go func() {
		done <- w.run(ctx, func() {
			if running.Add(1) != 1 {
				t.Error("calls overlap")
			}
			calls.Add(1)
			called <- struct{}{}
			<-called
			running.Add(-1)
		})
	}()
	change := func(i int) { ip(t, fmt.Sprintf("addr add 10.1.1.%d/32 dev one", i)) }
	for i := range 3 {
		change(i)
	}
	<-called // more changes while notify runs:
	for i := range 20 {
		change(10 + i)
	}
	called <- struct{}{}
	<-called // the changes during the call cause one more call
	cancel()
	called <- struct{}{}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := calls.Load(); n < 2 || n > 4 {
		t.Errorf("%d calls for 23 changes", n)
	}
}

// TestNamespaceWatchOverflow checks that changes are noticed if they overflow the socket
// buffer.
func TestNamespaceWatchOverflow(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newTwoLinks(t)
	w, err := openWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.conn.SetReadBuffer(1); err != nil { // the kernel uses its minimum
		t.Fatal(err)
	}
	var batch strings.Builder
	for i := range 500 {
		fmt.Fprintf(&batch, "route add 192.0.%d.%d/32 dev one\n", 2+i/250, i%250)
	}
	cmd := exec.CommandContext(t.Context(), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	errNotified := errors.New("notify was called")
	if err := w.run(ctx, func() { stop(errNotified) }); !errors.Is(err, errNotified) {
		t.Error(err)
	}
}

func TestWatchContextEnd(t *testing.T) {
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := Watch(ctx, func() {}); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

// TestThisHost checks that the lookups work on the host that runs the test, and logs their
// results.
func TestThisHost(t *testing.T) {
	for name, fn := range map[string]func() (Gateway, error){"Default": Default, "Default6": Default6} {
		g, err := fn()
		if err != nil && !errors.Is(err, ErrNoRoute) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %s, %v", name, describe(g), err)
	}
	list, err := Gateways()
	if err != nil {
		t.Error(err)
	}
	for _, g := range list {
		t.Log(describe(g))
	}
}
