package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

// TestMainServes runs the unchanged example on a test gateway.
func TestMainServes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot interrupt itself on Windows")
	}
	free, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Skipf("EXAMPLE NOT TESTED: %v", err)
	}
	_ = free.Close()
	t.Chdir(t.TempDir())
	if err := os.Mkdir("public", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("public/hello", []byte("from behind the router"), 0o600); err != nil {
		t.Fatal(err)
	}
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
	ended := make(chan struct{})
	go func() { main(); close(ended) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	select {
	case <-mapped:
	case <-ctx.Done():
		t.Fatal("no mapping within 30 s")
	}
	client := &http.Client{Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(gw.External(), 8080).String()+"/hello", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "from behind the router" {
		t.Errorf("read %q, %v", b, err)
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		t.Fatal("Ctrl-C did not end the program")
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway still has %v", table)
	}
}
