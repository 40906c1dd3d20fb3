package ssdp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/freeport"
)

// TestListen checks that Listen passes on every notification, one at a time, and no other
// datagram.
func TestListen(t *testing.T) {
	at, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}
	l := Listener{Addr: at}
	conns, err := l.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sender, from := device(t, loopback4)
	for _, s := range []string{
		"", "\xff\x00", crlf(plain), "M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n",
		strings.Repeat("x", 9000), crlf(alive), crlf(byebye), crlf(update),
	} {
		if _, err := sender.WriteToUDPAddrPort([]byte(s), at); err != nil {
			t.Fatal(err)
		}
	}
	errDone := errors.New("received all notifications")
	ctx, cancel := context.WithCancelCause(testContext(t))
	var got []NotificationKind
	err = l.serve(ctx, conns, func(n Notification) {
		if n.From != from || n.UDN() != "uuid:00000000-0000-0000-0000-000000000001" {
			t.Errorf("%+v", n)
		}
		if got = append(got, n.Kind); len(got) == 3 {
			cancel(errDone)
		}
	})
	if !errors.Is(err, errDone) {
		t.Errorf("%v, want the cause", err)
	}
	equal(t, got, []NotificationKind{Alive, ByeBye, Update})
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatalf("the socket is still open: %v", err)
	}
	_ = conn.Close()
}

func TestListenFails(t *testing.T) {
	_, inUse := device(t, loopback4)
	notify := func(Notification) { t.Error("notify was called") }
	for name, l := range map[string]Listener{
		"address in use":          {Addr: inUse},
		"no such interface":       {Interface: "none such"},
		"address of another host": {Addr: netip.MustParseAddrPort("192.0.2.1:1900")},
	} {
		if err := l.Listen(testContext(t), notify); err == nil || !strings.HasPrefix(err.Error(), "ssdp: listen: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := (Listener{Addr: inUse}).Listen(ctx, notify); !errors.Is(err, cause) {
		t.Errorf("%v, want the cause", err)
	}
}

// TestQueueLimit checks that notifications are lost when the queue is full, and that the
// reader does not block.
func TestQueueLimit(t *testing.T) {
	notifications := make(chan Notification, maxQueued)
	for range 2 * maxQueued {
		enqueue(notifications, []byte(alive), gateway)
	}
	if n := <-notifications; len(notifications) != maxQueued-1 || n.From != gateway {
		t.Errorf("%d queued after %+v", len(notifications), n)
	}
}
