package ssdp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/internal/errno"
)

func TestRequest(t *testing.T) {
	for _, tt := range []struct {
		s    Search
		to   string
		want string
	}{
		{
			Search{MX: 2 * time.Second},
			"239.255.255.250:1900",
			"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
		},
		{
			Search{},
			"192.168.1.1:1901",
			"M-SEARCH * HTTP/1.1\r\nHOST: 192.168.1.1:1901\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
		},
		{
			Search{},
			"[ff02::c%eth0]:1900",
			"M-SEARCH * HTTP/1.1\r\nHOST: [ff02::c]:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n",
		},
	} {
		if got := string(tt.s.request(igd1, netip.MustParseAddrPort(tt.to))); got != tt.want {
			t.Errorf("to %s: %q", tt.to, got)
		}
	}
	for mxSeconds, want := range map[time.Duration]int{
		0: 1, 1: 1, time.Second: 1, time.Second + 1: 2, 5 * time.Second: 5, time.Hour: 5, 1<<63 - 1: 5,
	} {
		if got := (Search{MX: mxSeconds}).mxSeconds(); got != want {
			t.Errorf("MX %v: %d, want %d", mxSeconds, got, want)
		}
	}
}

// TestSchedule checks that every target is sent to every destination, at once and then
// twice more.
func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network fakeNetwork
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for r, err := range (Search{To: []netip.AddrPort{Multicast, gateway, gateway6}}).responses(ctx, network.open) {
			t.Errorf("%+v, %v", r, err)
		}
		network.checkClosed(t)
		targets := []string{
			igd1,
			"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
			"urn:schemas-upnp-org:service:WANIPConnection:1",
			"urn:schemas-upnp-org:service:WANIPConnection:2",
			"urn:schemas-upnp-org:service:WANPPPConnection:1",
			"upnp:rootdevice",
			"ssdp:all",
		}
		var want4, want6 []string
		for _, at := range []string{"0s", "250ms", "750ms"} {
			for _, target := range targets {
				want4 = append(want4, at+" 239.255.255.250:1900 "+target, at+" 192.168.1.1:1900 "+target)
				want6 = append(want6, at+" [2001:db8::1]:1900 "+target)
			}
		}
		if len(network.conns) != 2 {
			t.Fatalf("%d sockets for two address families", len(network.conns))
		}
		equal(t, network.conns[0].sent, want4)
		equal(t, network.conns[1].sent, want6)
	})
}

func TestRepeatDelay(t *testing.T) {
	const ms = time.Millisecond
	for i, want := range []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 4000 * ms} {
		if got := repeatDelay(i + 1); got != want {
			t.Errorf("repetition %d: %v, want %v", i+1, got, want)
		}
	}
	if got := repeatDelay(math.MaxInt); got != 4*time.Second {
		t.Errorf("a late repetition: %v", got)
	}
}

func TestSocketConfigs(t *testing.T) {
	for _, tt := range []struct {
		source string
		to     []netip.AddrPort
		want   []socketConfig
	}{
		{"", nil, []socketConfig{{network: "udp4", local: netip.IPv4Unspecified(), multicast: true}}},
		{"192.168.1.5", []netip.AddrPort{gateway}, []socketConfig{{network: "udp4", local: netip.MustParseAddr("192.168.1.5")}}},
		{"::ffff:192.168.1.5", []netip.AddrPort{Multicast6, netip.MustParseAddrPort("[::ffff:192.168.1.1]:1900")}, []socketConfig{
			{network: "udp6", local: netip.IPv6Unspecified(), multicast: true},
			{network: "udp4", local: netip.MustParseAddr("192.168.1.5")},
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var network fakeNetwork
			s := Search{To: tt.to}
			if tt.source != "" {
				s.Source = netip.MustParseAddr(tt.source)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for _, err := range s.responses(ctx, network.open) {
				t.Error(err)
			}
			var got []socketConfig
			for _, c := range network.conns {
				got = append(got, c.config)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestWithZone(t *testing.T) {
	for addr, want := range map[string]string{
		"fe80::1": "fe80::1%eth0", "ff02::c": "ff02::c%eth0", "fe80::1%x": "fe80::1%x",
		"ff05::c": "ff05::c", "2001:db8::1": "2001:db8::1", "169.254.1.1": "169.254.1.1", "224.0.0.1": "224.0.0.1",
	} {
		if got := withZone(netip.MustParseAddr(addr), "eth0"); got.String() != want {
			t.Errorf("%s: %v, want %s", addr, got, want)
		}
	}
	if got := withZone(Multicast6.Addr(), ""); got != Multicast6.Addr() {
		t.Errorf("without an interface: %v", got)
	}
}

// TestFirstResponse checks that the response to the first datagram is yielded without any
// delay. It is yielded once, even if it is repeated from other ports. A read error does
// not end the search.
func TestFirstResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := fakeNetwork{onSend: func(c *fakeConn, _ datagram) error {
			for i := range 20 {
				c.in <- datagram{crlf(plain), netip.AddrPortFrom(gateway.Addr(), uint16(40000+i))}
			}
			c.in <- datagram{"", netip.AddrPort{}} // ECONNREFUSED
			c.in <- datagram{"\x00\xff", gateway}
			c.in <- datagram{responseText("http://later"), gateway}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		var got []Response
		for r, err := range (Search{Targets: []string{igd1}}).responses(ctx, network.open) {
			if got = append(got, r); err != nil || len(got) == 1 && time.Since(start) != 0 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		want := plainResponse()
		want.From = netip.AddrPortFrom(gateway.Addr(), 40000)
		equal(t, got, []Response{want, {Location: "http://later", USN: "uuid:1::x", From: gateway}})
		if time.Since(start) != time.Minute {
			t.Errorf("ended after %v", time.Since(start))
		}
	})
}

// TestBreakFromLoop checks that all sockets are closed when the caller leaves the loop, and
// that another loop starts a new search.
func TestBreakFromLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := fakeNetwork{onSend: func(c *fakeConn, d datagram) error {
			c.in <- datagram{crlf(plain), d.addr}
			return nil
		}}
		responses := (Search{To: []netip.AddrPort{gateway, gateway6}}).responses(t.Context(), network.open)
		for n := range 2 {
			for range responses {
				break
			}
			if len(network.conns) != 2*(n+1) {
				t.Errorf("%d sockets after %d loops", len(network.conns), n+1)
			}
			network.checkClosed(t)
		}
		func() {
			defer func() { _ = recover() }()
			for range responses {
				panic("in the loop")
			}
		}()
		network.checkClosed(t)
	})
}

// TestContextEnd checks that a search yields nothing after its context has ended, even if
// responses have arrived.
func TestContextEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := fakeNetwork{onSend: func(c *fakeConn, _ datagram) error {
			for i := range 10 {
				c.in <- datagram{responseText(fmt.Sprint("http://x/", i)), gateway}
			}
			return nil
		}}
		for range 20 { // select chooses randomly between two ready channels
			ctx, cancel := context.WithCancel(t.Context())
			count := 0
			for range (Search{}).responses(ctx, network.open) {
				count++
				synctest.Wait() // all responses have been read
				cancel()
			}
			cancel()
			if count != 1 {
				t.Errorf("%d responses, want the one before the end", count)
			}
			for range (Search{Sends: -1}).responses(ctx, network.open) {
				t.Error("a search yielded something after its context had ended")
			}
		}
	})
}

// TestPartialFailure checks that errors of some destinations do not affect the others.
func TestPartialFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := fakeNetwork{
			refuse: map[string]error{"udp6": syscall.EAFNOSUPPORT},
			onSend: func(c *fakeConn, d datagram) error {
				if d.addr == Multicast {
					return errno.ENETUNREACH
				}
				c.in <- datagram{crlf(plain), d.addr}
				return nil
			},
		}
		s := Search{To: []netip.AddrPort{Multicast6, gateway, Multicast}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		count := 0
		for r, err := range s.responses(ctx, network.open) {
			count++
			if err != nil || r.From != gateway {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if count != 1 {
			t.Errorf("%d responses, want 1", count)
		}
		network.checkClosed(t)
	})
}

// TestTotalFailure checks that a search fails once and without a delay if it can send to
// none of the destinations.
func TestTotalFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := fakeNetwork{
			refuse: map[string]error{"udp6": syscall.EAFNOSUPPORT},
			onSend: func(*fakeConn, datagram) error { return errno.ENETUNREACH },
		}
		s := Search{To: []netip.AddrPort{Multicast6, Multicast, gateway}}
		start, count := time.Now(), 0
		for r, err := range s.responses(t.Context(), network.open) {
			count++
			if r != (Response{}) || !errors.Is(err, errno.ENETUNREACH) || !errors.Is(err, syscall.EAFNOSUPPORT) {
				t.Errorf("%+v, %v", r, err)
			}
		}
		if count != 1 || time.Since(start) != 0 {
			t.Errorf("%d errors in %v", count, time.Since(start))
		}
		network.checkClosed(t)
	})
}

// TestLateFailure checks that a search continues if the network becomes unreachable after
// the first requests.
func TestLateFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sends := 0
		network := fakeNetwork{onSend: func(*fakeConn, datagram) error {
			if sends++; sends > 1 {
				return errno.ENETUNREACH
			}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, err := range (Search{Targets: []string{igd1}}).responses(ctx, network.open) {
			t.Error(err)
		}
		if sends != 3 {
			t.Errorf("%d sends, want 3", sends)
		}
	})
}

func TestInvalidSearch(t *testing.T) {
	for name, s := range map[string]Search{
		"no address":        {To: []netip.AddrPort{{}}},
		"port 0":            {To: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}},
		"unspecified":       {To: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1900")}},
		"empty target":      {Targets: []string{""}},
		"header injection":  {Targets: []string{"a\r\nHOST: b"}},
		"negative MX":       {MX: -1},
		"negative sends":    {Sends: -1},
		"no such interface": {Interface: "none such"},
	} {
		count := 0
		for r, err := range s.responses(t.Context(), (&fakeNetwork{}).open) {
			count++
			if err == nil || !strings.HasPrefix(err.Error(), "ssdp: search: ") || r != (Response{}) {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
		if count != 1 {
			t.Errorf("%s: %d errors, want 1", name, count)
		}
	}
}

func TestPrepare(t *testing.T) {
	i := slices.IndexFunc(interfaces(t), func(ifi net.Interface) bool { return ifi.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Skip("SKIPPED, NOTHING WAS TESTED: no loopback interface")
	}
	lo := interfaces(t)[i]
	if got := interfaceWithAddr(loopback4); got == nil || got.Name != lo.Name {
		t.Errorf("%v is on %+v", loopback4, got)
	}
	if got := interfaceWithAddr(netip.MustParseAddr("192.0.2.1")); got != nil {
		t.Errorf("an address of another host is on %+v", got)
	}
	to := []netip.AddrPort{Multicast6, netip.MustParseAddrPort("[::ffff:127.0.0.1]:1")}
	s, ifi, err := (Search{Interface: lo.Name, To: to}).prepare()
	if err != nil || ifi.Index != lo.Index {
		t.Fatalf("%+v, %v", ifi, err)
	}
	equal(t, fmt.Sprint(s.To), fmt.Sprintf("[[ff02::c%%%s]:1900 127.0.0.1:1]", lo.Name))
	if to[0] != Multicast6 {
		t.Error("prepare changed the caller's destinations")
	}
}

func interfaces(t *testing.T) []net.Interface {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLoopback checks that responses are yielded from both address families, and from ports
// that are no destinations. All other datagrams are ignored. At one destination, no socket
// is listening.
func TestLoopback(t *testing.T) {
	closed, closedAddr := device(t, loopback4)
	_ = closed.Close()
	device4, at4 := device(t, loopback4)
	sender, _ := device(t, loopback4) // sends the responses
	go serveDevice(device4, func(search string, from netip.AddrPort) {
		if !strings.HasPrefix(search, "M-SEARCH * HTTP/1.1\r\nHOST: "+at4.String()+"\r\n") || from.Port() == Port {
			t.Errorf("from %v: %q", from, search)
		}
		for _, s := range []string{"", "\x00\xff\x00", crlf(alive), search, strings.Repeat("x", 9000), crlf(plain), crlf(plain)} {
			_, _ = sender.WriteToUDPAddrPort([]byte(s), from)
		}
	})
	to := []netip.AddrPort{closedAddr, at4}
	want := map[netip.Addr]bool{loopback4: true}
	if device6, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback6, 0))); err != nil {
		t.Logf("IPv6 NOT TESTED: %v", err)
	} else {
		defer func() { _ = device6.Close() }()
		to = append(to, addrOf(t, device6))
		want[loopback6] = true
		go serveDevice(device6, func(_ string, from netip.AddrPort) {
			_, _ = device6.WriteToUDPAddrPort([]byte(crlf(plain)), from)
		})
	}
	for r, err := range (Search{To: to}).Responses(testContext(t)) {
		if err != nil || !want[r.From.Addr()] {
			t.Fatalf("%+v, %v", r, err)
		}
		if r.From.Addr() == loopback4 && r.From != addrOf(t, sender) {
			t.Errorf("from %v, want %v", r.From, sender.LocalAddr())
		}
		delete(want, r.From.Addr())
		r.From = netip.AddrPort{}
		equal(t, r, plainResponse())
		if len(want) == 0 {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("no response from %v", want)
	}
}

// TestSource checks that a search uses the source address, and that it fails if this host
// does not have that address.
func TestSource(t *testing.T) {
	conn, at := device(t, loopback4)
	go serveDevice(conn, func(_ string, from netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort([]byte(responseText("http://"+from.Addr().String())), from)
	})
	s := Search{To: []netip.AddrPort{at}, Source: loopback4}
	for r, err := range s.Responses(testContext(t)) {
		if err != nil || r.Location != "http://127.0.0.1" {
			t.Errorf("%+v, %v", r, err)
		}
		break
	}
	s.Source = netip.MustParseAddr("192.0.2.1")
	count := 0
	for _, err := range s.Responses(testContext(t)) {
		if count++; err == nil {
			t.Error("searched from an address of another host")
		}
	}
	if count != 1 {
		t.Errorf("%d errors, want 1", count)
	}
}

// TestDedup checks that responses are distinct if the address, the location or the device
// differs.
func TestDedup(t *testing.T) {
	d := newDedup(nil)
	for _, tt := range []struct{ location, usn, from string }{
		{"http://a", "uuid:1::x", "192.168.1.1:1900"},
		{"http://b", "uuid:1::x", "192.168.1.1:1900"},
		{"http://a", "uuid:2::x", "192.168.1.1:1900"},
		{"http://a", "uuid:1::x", "192.168.1.2:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%a]:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%b]:1900"},
		{"http://a", "", "192.168.1.1:1900"},
	} {
		before := len(d.responses)
		text := "HTTP/1.1 200\nLOCATION: " + tt.location + "\nUSN: " + tt.usn + "\n"
		from := netip.MustParseAddrPort(tt.from)
		d.add([]byte(text), from)
		d.add([]byte(text), from)
		d.add([]byte(text+"ST: another\n"), netip.AddrPortFrom(from.Addr(), 5))
		if n := len(d.responses) - before; n != 1 {
			t.Errorf("%+v: yielded %d times, want once", tt, n)
		}
	}
}

// TestDedupLimits checks that the number of responses is limited, and the memory while the
// loop is slow. A flood displaces neither the responses of another address nor those of a
// unicast destination.
func TestDedupLimits(t *testing.T) {
	d := newDedup([]netip.AddrPort{Multicast, gateway})
	flood := func(from netip.Addr) int {
		before := len(d.responses)
		for i := range 1000 {
			d.add([]byte(responseText(fmt.Sprint("http://x/", i))), netip.AddrPortFrom(from, 1))
		}
		return len(d.responses) - before
	}
	other := netip.MustParseAddr("192.168.1.2")
	for want := range slices.Values([]int{64, 64, 64, 64, 0, 0}) {
		if n := flood(other); n != want {
			t.Errorf("%d responses from %v, want %d", n, other, want)
		}
		other = other.Next()
	}
	if n := flood(gateway.Addr()); n != 64 {
		t.Errorf("%d responses from the gateway, want 64", n)
	}
	if len(d.seen) != 320 || len(d.perAddr) != 5 || cap(d.responses) != 320 {
		t.Errorf("%d seen, %d addresses, capacity %d", len(d.seen), len(d.perAddr), cap(d.responses))
	}
}
