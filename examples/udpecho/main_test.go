package main

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

// TestMainEchoes runs the unchanged example on a test gateway. The example ends with the
// process.
func TestMainEchoes(t *testing.T) {
	free, err := net.ListenPacket("udp", ":9000")
	if err != nil {
		t.Skipf("EXAMPLE NOT TESTED: %v", err)
	}
	_ = free.Close()
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	mapped := make(chan struct{})
	config := gw.Config()
	config.OnEvent = func(forward.Event) { close(mapped) }
	if err := forward.Configure(config); err != nil {
		t.Fatal(err)
	}
	defer forward.Close()
	go main()
	select {
	case <-mapped:
	case <-time.After(30 * time.Second):
		t.Fatal("no mapping within 30 s")
	}
	conn, err := gw.Dial(t.Context(), "udp", netip.AddrPortFrom(gw.External(), 9000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
}
