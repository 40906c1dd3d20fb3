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

// Notices come one at a time, and nothing else does.
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
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(soon(t))
	var got []NotificationKind
	err = l.serve(ctx, conns, func(n Notification) {
		if n.From != from || n.UDN() != "uuid:00000000-0000-0000-0000-000000000001" {
			t.Errorf("%+v", n)
		}
		if got = append(got, n.Kind); len(got) == 3 {
			cancel(enough)
		}
	})
	if !errors.Is(err, enough) {
		t.Errorf("%v, want the cause", err)
	}
	equal(t, got, []NotificationKind{Alive, ByeBye, Update})
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatalf("the socket is still there: %v", err)
	}
	_ = again.Close()
}

func TestListenFails(t *testing.T) {
	_, taken := device(t, loopback4)
	never := func(Notification) { t.Error("a notice") }
	for name, l := range map[string]Listener{
		"taken":        {Addr: taken},
		"no interface": {Interface: "none such"},
		"not ours":     {Addr: netip.MustParseAddrPort("192.0.2.1:1900")},
	} {
		if err := l.Listen(soon(t), never); err == nil || !strings.HasPrefix(err.Error(), "ssdp: listen: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cause := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := (Listener{Addr: taken}).Listen(ctx, never); !errors.Is(err, cause) {
		t.Errorf("%v, want the cause", err)
	}
}

// Notices that a slow notify has no room for are lost; the reader goes on.
func TestQueue(t *testing.T) {
	notices := make(chan Notification, maxQueue)
	for range 2 * maxQueue {
		queue(notices, []byte(alive), gateway)
	}
	if n := <-notices; len(notices) != maxQueue-1 || n.From != gateway {
		t.Errorf("%d left after %+v", len(notices), n)
	}
}
