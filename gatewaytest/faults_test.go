package gatewaytest_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
)

const (
	addrReply   = "00800000000004d2cb007107"
	mapTCPReply = "00820000000004d21f901f9000001c20"
)

func isMap(q gatewaytest.Request) bool { return q.Op == gatewaytest.OpMap }

func TestFaultDrop(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 2, Drop: true})
	h.expect(mapTCP, "")
	h.expect(mapTCP, "")
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a dropped request made %v", all)
	}
	h.expect(mapTCP, mapTCPReply)
	requests, err := gw.AwaitRequests(waiting(t), 3, isMap)
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range requests {
		if answered := i == 2; q.Answered != answered {
			t.Errorf("request %d: Answered is %v, want %v", i, q.Answered, answered)
		}
	}
}

func TestFaultDropReply(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	remove := gw.Inject(gatewaytest.Fault{Match: isMap, DropReply: true})
	for range 3 {
		h.expect(mapTCP, "")
	}
	only(t, gw)
	remove()
	remove()
	h.expect(mapTCP, mapTCPReply)
}

func TestFaultResult(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 9, Times: 2})
	h.expect("0000", "0080 0009 000004d2 00000000")
	h.expect(mapTCP, "0082 0009 000004d2 1f90 0000 00000000")
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a refused request made %v", all)
	}
	h.expect("0000", addrReply)
}

func TestFaultReply(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Match: isMap, Reply: func(b []byte) [][]byte {
		return [][]byte{{1, 2, 3}, b[:2]}
	}})
	h.expect(mapTCP, "010203")
	if got := h.receive(); got != "0002" {
		t.Errorf("second answer %s", got)
	}
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a hijacked request made %v", all)
	}
}

func TestFaultCorruptAndDuplicate(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Duplicate: 2, Corrupt: func(b []byte) []byte { return b[:3] }})
	h.send("0000")
	for range 3 {
		if got := h.receive(); got != "008000" {
			t.Errorf("got %s", got)
		}
	}
	gw.Inject(gatewaytest.Fault{Times: 1, Corrupt: func([]byte) []byte { return nil }})
	h.expect("0000", "") // lost, the fault is spent by it
}

func TestFaultHoldAndDelay(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	hold := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 1, Hold: hold})
	h.send(mapTCP)
	for range 200 {
		h.expect("0000", addrReply) // overtakes
	}
	only(t, gw) // done already, only the answer is held
	close(hold)
	if got := h.receive(); got != mapTCPReply {
		t.Errorf("got %s", got)
	}

	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 1, Delay: time.Millisecond})
	h.expect(mapTCP, mapTCPReply)

	// Close does not wait for what is held back or late.
	gw.Inject(gatewaytest.Fault{Times: 1, Hold: make(chan struct{})})
	gw.Inject(gatewaytest.Fault{Match: isMap, Delay: time.Hour})
	h.send(mapTCP)
	h.send(mapTCP)
	for range 200 {
		h.expect("0000", addrReply)
	}
	if _, err := gw.AwaitRequests(waiting(t), 404, nil); err != nil {
		t.Fatal(err)
	}
}

// A request that is held is handled when the channel is closed, and later requests
// after it, those over HTTP as well.
func TestFaultHoldRequest(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h, c := newHost(t, gw), newControl(t, gw)
	hold, arrived := make(chan struct{}), make(chan struct{})
	arrives := func(op gatewaytest.Op) func(gatewaytest.Request) bool {
		return func(q gatewaytest.Request) bool {
			if q.Op == op {
				arrived <- struct{}{}
			}
			return q.Op == op
		}
	}
	gw.Inject(gatewaytest.Fault{Match: arrives(gatewaytest.OpMap), Times: 1, HoldRequest: hold})
	gw.Inject(gatewaytest.Fault{Match: arrives(gatewaytest.OpLookup), Times: 1})
	h.send(mapTCP)
	<-arrived
	h.send("0000")
	code := make(chan int)
	go func() {
		_, got := c.lookup("TCP", "8080")
		code <- got
	}()
	<-arrived
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a request that is held made %v", all)
	}
	close(hold)
	for _, want := range []string{mapTCPReply, addrReply} {
		if got := h.receive(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := <-code; got != 0 {
		t.Errorf("fault %d: the lookup was handled before the request that made the entry", got)
	}
	h.expect("0000", addrReply)

	// Close does not wait for what is held.
	gw.Inject(gatewaytest.Fault{Match: arrives(gatewaytest.OpMap), HoldRequest: make(chan struct{})})
	h.send(mapTCP)
	<-arrived
}

func TestFaultRepeat(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Repeat: 2})
	h.send(mapTCP)
	for range 3 {
		if got := h.receive(); got != mapTCPReply {
			t.Errorf("got %s", got)
		}
	}
	only(t, gw)
	h.expect("0000", addrReply)
}

func TestFaultOrder(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Result: 2})
	gw.Inject(gatewaytest.Fault{Times: 1, Result: 3})
	h.expect("0000", "0080 0002 000004d2 00000000")
	h.expect("0000", "0080 0003 000004d2 00000000")
	h.expect("0000", addrReply)
}

func TestRequestsAndStats(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}})
	h := newHost(t, gw)
	h.ask("0000")
	h.ask(mapTCP)
	h.ask("0001 0000 1ae1 0000 00000000")
	h.ask("0200")
	h.ask("0007")
	var names []string
	for _, q := range gw.Requests() {
		names = append(names, fmt.Sprintf("%s %x", q.Name(), q.Raw))
		if q.Source.String() != h.LocalAddr().String() || q.Time.IsZero() {
			t.Errorf("request from %v at %v", q.Source, q.Time)
		}
	}
	want := "natpmp external address 0000|natpmp map tcp 000200001f901f9000001c20|" +
		"natpmp unmap udp 000100001ae1000000000000|pcp other 0200|natpmp other 0007"
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s := gw.Stats(); s.Requests["natpmp map tcp"] != 1 || len(s.Requests) != 5 {
		t.Errorf("stats %+v", s)
	}
	if got, err := gw.AwaitRequests(waiting(t), 1, isMap); err != nil || len(got) != 1 {
		t.Errorf("await: %v, %v", got, err)
	}
	gw.ResetStats()
	if s := gw.Stats(); len(s.Requests) != 0 || len(gw.Requests()) != 0 {
		t.Errorf("after reset: %+v", s)
	}
}

func TestManyRequests(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	h := newHost(t, gw)
	for range 9000 {
		h.ask("0000")
	}
	if n := len(gw.Requests()); n < 4096 || n > 8192 {
		t.Errorf("%d requests remembered", n)
	}
	if n := gw.Stats().Requests["natpmp external address"]; n != 9000 {
		t.Errorf("%d requests counted", n)
	}
}

// Hosts at once, all wishing one port: each gets one of its own.
func TestConcurrentClients(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return len(q.Raw) == 3 }})
	const clients, each = 8, 25
	var wg sync.WaitGroup
	for i := range clients {
		h := newHost(t, gw)
		wg.Go(func() {
			for j := range each {
				h.send(fmt.Sprintf("00020000%04x1f9000001c20", 1000+i*each+j))
				b := make([]byte, 64)
				n, err := h.Read(b)
				if err != nil || n != 16 || b[3] != 0 {
					t.Errorf("%x, %v", b[:n], err)
					return
				}
				_ = gw.Table()
				_ = gw.Stats()
			}
		})
	}
	wg.Wait()
	if n := len(gw.Table()); n != clients*each {
		t.Errorf("%d entries, want %d", n, clients*each)
	}
}

func TestAwaitRequestsEnds(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	ctx := waiting(t)
	h := newHost(t, gw)
	go func() { _, _ = h.Write([]byte{0, 0}) }()
	if got, err := gw.AwaitRequests(ctx, 1, nil); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}
