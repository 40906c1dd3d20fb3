package gatewaytest_test

import (
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
)

const (
	addrReply   = "00800000000004d2cb007107"
	mapTCPReply = "00820000000004d21f901f9000001c20"
)

func isMap(q gatewaytest.Request) bool { return q.Op == "map" }

func TestFaultDrop(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 2, Drop: true})
	h.expect(mapTCP, "")
	h.expect(mapTCP, "")
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a dropped request created %v", all)
	}
	h.expect(mapTCP, mapTCPReply)
	requests, err := gw.AwaitRequests(testContext(t), 3, isMap)
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
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	remove := gw.Inject(gatewaytest.Fault{Match: isMap, DropReply: true})
	for range 3 {
		h.expect(mapTCP, "")
	}
	onlyEntry(t, gw)
	remove()
	remove()
	h.expect(mapTCP, mapTCPReply)
}

func TestFaultResult(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 9, Times: 2})
	h.expect("0000", "0080 0009 000004d2 00000000")
	h.expect(mapTCP, "0082 0009 000004d2 1f90 0000 00000000")
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a refused request created %v", all)
	}
	h.expect("0000", addrReply)
}

func TestFaultReply(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Match: isMap, Reply: func(b []byte) [][]byte {
		return [][]byte{{1, 2, 3}, b[:2]}
	}})
	h.expect(mapTCP, "010203")
	if got := h.receive(); got != "0002" {
		t.Errorf("second response %s", got)
	}
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("a request that Reply answered created %v", all)
	}
}

func TestFaultCorruptAndDuplicate(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Duplicate: 2, Corrupt: func(b []byte) []byte { return b[:3] }})
	h.send("0000")
	for range 3 {
		if got := h.receive(); got != "008000" {
			t.Errorf("got %s", got)
		}
	}
	gw.Inject(gatewaytest.Fault{Times: 1, Corrupt: func([]byte) []byte { return nil }})
	h.expect("0000", "") // the response is discarded, and the fault is used up
}

func TestFaultHoldAndDelay(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	hold := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 1, Hold: hold})
	h.send(mapTCP)
	for range 200 {
		h.expect("0000", addrReply) // is answered before the held response
	}
	onlyEntry(t, gw) // the request has been handled; only the response is held
	close(hold)
	if got := h.receive(); got != mapTCPReply {
		t.Errorf("got %s", got)
	}

	gw.Inject(gatewaytest.Fault{Match: isMap, Times: 1, Delay: time.Millisecond})
	h.expect(mapTCP, mapTCPReply)

	// Close does not wait for responses that are held or delayed.
	gw.Inject(gatewaytest.Fault{Times: 1, Hold: make(chan struct{})})
	gw.Inject(gatewaytest.Fault{Match: isMap, Delay: time.Hour})
	h.send(mapTCP)
	h.send(mapTCP)
	for range 200 {
		h.expect("0000", addrReply)
	}
	if _, err := gw.AwaitRequests(testContext(t), 404, nil); err != nil {
		t.Fatal(err)
	}
}

// TestFaultHoldRequest checks that a held request is handled when the channel is closed,
// and that later requests, including those over HTTP, are handled after it.
func TestFaultHoldRequest(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h, c := newHost(t, gw), newIGDClient(t, gw)
	hold, arrived := make(chan struct{}), make(chan struct{})
	matchOp := func(op string) func(gatewaytest.Request) bool {
		return func(q gatewaytest.Request) bool {
			if q.Op == op {
				arrived <- struct{}{}
			}
			return q.Op == op
		}
	}
	gw.Inject(gatewaytest.Fault{Match: matchOp("map"), Times: 1, HoldRequest: hold})
	gw.Inject(gatewaytest.Fault{Match: matchOp("look up"), Times: 1})
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
		t.Errorf("a held request created %v", all)
	}
	close(hold)
	for _, want := range []string{mapTCPReply, addrReply} {
		if got := h.receive(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := <-code; got != 0 {
		t.Errorf("fault %d: the lookup was handled before the request that creates the entry", got)
	}
	h.expect("0000", addrReply)

	// Close does not wait for held requests.
	gw.Inject(gatewaytest.Fault{Match: matchOp("map"), HoldRequest: make(chan struct{})})
	h.send(mapTCP)
	<-arrived
}

func TestFaultRepeat(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Repeat: 2})
	h.send(mapTCP)
	for range 3 {
		if got := h.receive(); got != mapTCPReply {
			t.Errorf("got %s", got)
		}
	}
	onlyEntry(t, gw)
	h.expect("0000", addrReply)
}

func TestFaultOrder(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	gw.Inject(gatewaytest.Fault{Times: 1, Result: 2})
	gw.Inject(gatewaytest.Fault{Times: 1, Result: 3})
	h.expect("0000", "0080 0002 000004d2 00000000")
	h.expect("0000", "0080 0003 000004d2 00000000")
	h.expect("0000", addrReply)
}
