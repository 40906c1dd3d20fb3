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
	for mx, want := range map[time.Duration]int{
		0: 1, 1: 1, time.Second: 1, time.Second + 1: 2, 5 * time.Second: 5, time.Hour: 5, 1<<63 - 1: 5,
	} {
		if got := (Search{MX: mx}).mx(); got != want {
			t.Errorf("MX %v: %d, want %d", mx, got, want)
		}
	}
}

// Every target goes to every destination, at once and then twice more.
func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w world
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for a, err := range (Search{To: []netip.AddrPort{Multicast, gateway, gateway6}}).responses(ctx, w.open) {
			t.Errorf("%+v, %v", a, err)
		}
		w.allClosed(t)
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
		if len(w.conns) != 2 {
			t.Fatalf("%d sockets for two families", len(w.conns))
		}
		equal(t, w.conns[0].sent, want4)
		equal(t, w.conns[1].sent, want6)
	})
}

func TestGap(t *testing.T) {
	const ms = time.Millisecond
	for i, want := range []time.Duration{250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms, 4000 * ms} {
		if got := gap(i + 1); got != want {
			t.Errorf("gap %d: %v, want %v", i+1, got, want)
		}
	}
	if got := gap(math.MaxInt); got != 4*time.Second {
		t.Errorf("a late gap: %v", got)
	}
}

func TestSeats(t *testing.T) {
	for _, tt := range []struct {
		source string
		to     []netip.AddrPort
		want   []seat
	}{
		{"", nil, []seat{{network: "udp4", local: netip.IPv4Unspecified(), multicast: true}}},
		{"192.168.1.5", []netip.AddrPort{gateway}, []seat{{network: "udp4", local: netip.MustParseAddr("192.168.1.5")}}},
		{"::ffff:192.168.1.5", []netip.AddrPort{Multicast6, netip.MustParseAddrPort("[::ffff:192.168.1.1]:1900")}, []seat{
			{network: "udp6", local: netip.IPv6Unspecified(), multicast: true},
			{network: "udp4", local: netip.MustParseAddr("192.168.1.5")},
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var w world
			s := Search{To: tt.to}
			if tt.source != "" {
				s.Source = netip.MustParseAddr(tt.source)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for _, err := range s.responses(ctx, w.open) {
				t.Error(err)
			}
			var got []seat
			for _, c := range w.conns {
				got = append(got, c.seat)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestScoped(t *testing.T) {
	for addr, want := range map[string]string{
		"fe80::1": "fe80::1%eth0", "ff02::c": "ff02::c%eth0", "fe80::1%x": "fe80::1%x",
		"ff05::c": "ff05::c", "2001:db8::1": "2001:db8::1", "169.254.1.1": "169.254.1.1", "224.0.0.1": "224.0.0.1",
	} {
		if got := scoped(netip.MustParseAddr(addr), "eth0"); got.String() != want {
			t.Errorf("%s: %v, want %s", addr, got, want)
		}
	}
	if got := scoped(Multicast6.Addr(), ""); got != Multicast6.Addr() {
		t.Errorf("without an interface: %v", got)
	}
}

// Nothing waits for anything: the answer to the first datagram is the caller's
// before any time has passed. It is told once, whatever comes again, and from
// whatever port. A socket's error is not the end.
func TestFirstAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{onSend: func(c *fakeConn, _ datagram) error {
			for i := range 20 {
				c.in <- datagram{crlf(plain), netip.AddrPortFrom(gateway.Addr(), uint16(40000+i))}
			}
			c.in <- datagram{"", netip.AddrPort{}} // somebody refused
			c.in <- datagram{"\x00\xff", gateway}
			c.in <- datagram{answer("http://later"), gateway}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		var got []Response
		for a, err := range (Search{Targets: []string{igd1}}).responses(ctx, w.open) {
			if got = append(got, a); err != nil || len(got) == 1 && time.Since(start) != 0 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		want := plainAnswer()
		want.From = netip.AddrPortFrom(gateway.Addr(), 40000)
		equal(t, got, []Response{want, {Location: "http://later", USN: "uuid:1::x", From: gateway}})
		if time.Since(start) != time.Minute {
			t.Errorf("over after %v", time.Since(start))
		}
	})
}

// A loop that is left leaves nothing behind, and another loop searches anew.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{onSend: func(c *fakeConn, d datagram) error {
			c.in <- datagram{crlf(plain), d.addr}
			return nil
		}}
		answers := (Search{To: []netip.AddrPort{gateway, gateway6}}).responses(t.Context(), w.open)
		for n := range 2 {
			for range answers {
				break
			}
			if len(w.conns) != 2*(n+1) {
				t.Errorf("%d sockets after %d loops", len(w.conns), n+1)
			}
			w.allClosed(t)
		}
		func() {
			defer func() { _ = recover() }()
			for range answers {
				panic("in the loop")
			}
		}()
		w.allClosed(t)
	})
}

// Once its context has ended a search is silent, whatever has come in.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{onSend: func(c *fakeConn, _ datagram) error {
			for i := range 10 {
				c.in <- datagram{answer(fmt.Sprint("http://x/", i)), gateway}
			}
			return nil
		}}
		for range 20 { // chance decides which of two ready channels is looked at
			ctx, cancel := context.WithCancel(t.Context())
			count := 0
			for range (Search{}).responses(ctx, w.open) {
				count++
				synctest.Wait() // all are in
				cancel()
			}
			cancel()
			if count != 1 {
				t.Errorf("%d answers, want the one before the end", count)
			}
			for range (Search{Sends: -1}).responses(ctx, w.open) {
				t.Error("a search whose context had ended said something")
			}
		}
	})
}

// What keeps one destination from being asked is no matter to the others.
func TestPartialFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{
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
		for a, err := range s.responses(ctx, w.open) {
			count++
			if err != nil || a.From != gateway {
				t.Errorf("%+v, %v", a, err)
			}
		}
		if count != 1 {
			t.Errorf("%d answers, want 1", count)
		}
		w.allClosed(t)
	})
}

// Where nobody can be asked, that is told, once and at once.
func TestTotalFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{
			refuse: map[string]error{"udp6": syscall.EAFNOSUPPORT},
			onSend: func(*fakeConn, datagram) error { return errno.ENETUNREACH },
		}
		s := Search{To: []netip.AddrPort{Multicast6, Multicast, gateway}}
		start, count := time.Now(), 0
		for a, err := range s.responses(t.Context(), w.open) {
			count++
			if a != (Response{}) || !errors.Is(err, errno.ENETUNREACH) || !errors.Is(err, syscall.EAFNOSUPPORT) {
				t.Errorf("%+v, %v", a, err)
			}
		}
		if count != 1 || time.Since(start) != 0 {
			t.Errorf("told %d times in %v", count, time.Since(start))
		}
		w.allClosed(t)
	})
}

// A network that goes away after the first searches ends nothing.
func TestLateFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sends := 0
		w := world{onSend: func(*fakeConn, datagram) error {
			if sends++; sends > 1 {
				return errno.ENETUNREACH
			}
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, err := range (Search{Targets: []string{igd1}}).responses(ctx, w.open) {
			t.Error(err)
		}
		if sends != 3 {
			t.Errorf("%d sends, want 3", sends)
		}
	})
}

func TestInvalidSearch(t *testing.T) {
	for name, s := range map[string]Search{
		"no address":     {To: []netip.AddrPort{{}}},
		"port 0":         {To: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}},
		"unspecified":    {To: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1900")}},
		"empty target":   {Targets: []string{""}},
		"header smuggle": {Targets: []string{"a\r\nHOST: b"}},
		"MX":             {MX: -1},
		"sends":          {Sends: -1},
		"no interface":   {Interface: "none such"},
	} {
		count := 0
		for a, err := range s.responses(t.Context(), (&world{}).open) {
			count++
			if err == nil || !strings.HasPrefix(err.Error(), "ssdp: search: ") || a != (Response{}) {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
		}
		if count != 1 {
			t.Errorf("%s: told %d times", name, count)
		}
	}
}

func TestPrepare(t *testing.T) {
	i := slices.IndexFunc(interfaces(t), func(ifi net.Interface) bool { return ifi.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Skip("SKIPPED, NOTHING WAS TESTED: no loopback interface")
	}
	lo := interfaces(t)[i]
	if got := interfaceOf(loopback4); got == nil || got.Name != lo.Name {
		t.Errorf("%v is on %+v", loopback4, got)
	}
	if got := interfaceOf(netip.MustParseAddr("192.0.2.1")); got != nil {
		t.Errorf("somebody else's address is on %+v", got)
	}
	to := []netip.AddrPort{Multicast6, netip.MustParseAddrPort("[::ffff:127.0.0.1]:1")}
	s, ifi, err := (Search{Interface: lo.Name, To: to}).prepare()
	if err != nil || ifi.Index != lo.Index {
		t.Fatalf("%+v, %v", ifi, err)
	}
	equal(t, fmt.Sprint(s.To), fmt.Sprintf("[[ff02::c%%%s]:1900 127.0.0.1:1]", lo.Name))
	if to[0] != Multicast6 {
		t.Error("the caller's destinations were changed")
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

// Answers stream from both families and from ports that were not asked; of what
// else comes nothing is seen. One destination has nobody who listens.
func TestLoopback(t *testing.T) {
	closed, gone := device(t, loopback4)
	_ = closed.Close()
	four, at4 := device(t, loopback4)
	other, _ := device(t, loopback4) // answers go out of here
	go serveDevice(four, func(search string, from netip.AddrPort) {
		if !strings.HasPrefix(search, "M-SEARCH * HTTP/1.1\r\nHOST: "+at4.String()+"\r\n") || from.Port() == Port {
			t.Errorf("from %v: %q", from, search)
		}
		for _, s := range []string{"", "\x00\xff\x00", crlf(alive), search, strings.Repeat("x", 9000), crlf(plain), crlf(plain)} {
			_, _ = other.WriteToUDPAddrPort([]byte(s), from)
		}
	})
	to := []netip.AddrPort{gone, at4}
	want := map[netip.Addr]bool{loopback4: true}
	if six, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback6, 0))); err != nil {
		t.Logf("IPv6 NOT TESTED: %v", err)
	} else {
		defer func() { _ = six.Close() }()
		to = append(to, addrOf(t, six))
		want[loopback6] = true
		go serveDevice(six, func(_ string, from netip.AddrPort) {
			_, _ = six.WriteToUDPAddrPort([]byte(crlf(plain)), from)
		})
	}
	for a, err := range (Search{To: to}).Responses(soon(t)) {
		if err != nil || !want[a.From.Addr()] {
			t.Fatalf("%+v, %v", a, err)
		}
		if a.From.Addr() == loopback4 && a.From != addrOf(t, other) {
			t.Errorf("from %v, want %v", a.From, other.LocalAddr())
		}
		delete(want, a.From.Addr())
		a.From = netip.AddrPort{}
		equal(t, a, plainAnswer())
		if len(want) == 0 {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("no answer from %v", want)
	}
}

// A source that this host does not have keeps its family from searching.
func TestSource(t *testing.T) {
	conn, at := device(t, loopback4)
	go serveDevice(conn, func(_ string, from netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort([]byte(answer("http://"+from.Addr().String())), from)
	})
	s := Search{To: []netip.AddrPort{at}, Source: loopback4}
	for a, err := range s.Responses(soon(t)) {
		if err != nil || a.Location != "http://127.0.0.1" {
			t.Errorf("%+v, %v", a, err)
		}
		break
	}
	s.Source = netip.MustParseAddr("192.0.2.1")
	count := 0
	for _, err := range s.Responses(soon(t)) {
		if count++; err == nil {
			t.Error("searched from an address of somebody else")
		}
	}
	if count != 1 {
		t.Errorf("told %d times", count)
	}
}

// Answers are distinct by address, location and device.
func TestDistinct(t *testing.T) {
	in := newInbox(nil)
	for _, d := range []struct{ location, usn, from string }{
		{"http://a", "uuid:1::x", "192.168.1.1:1900"},
		{"http://b", "uuid:1::x", "192.168.1.1:1900"},
		{"http://a", "uuid:2::x", "192.168.1.1:1900"},
		{"http://a", "uuid:1::x", "192.168.1.2:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%a]:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%b]:1900"},
		{"http://a", "", "192.168.1.1:1900"},
	} {
		before := len(in.answers)
		text := "HTTP/1.1 200\nLOCATION: " + d.location + "\nUSN: " + d.usn + "\n"
		from := netip.MustParseAddrPort(d.from)
		in.take([]byte(text), from)
		in.take([]byte(text), from)
		in.take([]byte(text+"ST: another\n"), netip.AddrPortFrom(from.Addr(), 5))
		if n := len(in.answers) - before; n != 1 {
			t.Errorf("%+v is told %d times", d, n)
		}
	}
}

// A flood has bounds, fills no memory while the loop is slow, and crowds out
// neither another address nor one that was asked itself.
func TestFlood(t *testing.T) {
	in := newInbox([]netip.AddrPort{Multicast, gateway})
	flood := func(from netip.Addr) int {
		before := len(in.answers)
		for i := range 1000 {
			in.take([]byte(answer(fmt.Sprint("http://x/", i))), netip.AddrPortFrom(from, 1))
		}
		return len(in.answers) - before
	}
	stranger := netip.MustParseAddr("192.168.1.2")
	for want := range slices.Values([]int{64, 64, 64, 64, 0, 0}) {
		if n := flood(stranger); n != want {
			t.Errorf("%d answers of %v, want %d", n, stranger, want)
		}
		stranger = stranger.Next()
	}
	if n := flood(gateway.Addr()); n != 64 {
		t.Errorf("%d answers of the gateway, want 64", n)
	}
	if len(in.seen) != 320 || len(in.perAddr) != 5 || cap(in.answers) != 320 {
		t.Errorf("%d, %d and %d", len(in.seen), len(in.perAddr), cap(in.answers))
	}
}
