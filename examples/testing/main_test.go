package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// run runs the program behind a router of the test's own, until the test ends.
func run(t *testing.T, config gatewaytest.Config, faults ...gatewaytest.Fault) (*gatewaytest.Gateway, <-chan backends.Endpoint) {
	t.Helper()
	gw := gatewaytest.New(t, config)
	for _, fault := range faults {
		gw.Inject(fault)
	}
	f, err := forward.New(gw.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	told := make(chan backends.Endpoint, 10)
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, f, func(at backends.Endpoint) { told <- at }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		_ = f.Close()
		if left := gw.Table(); len(left) != 0 {
			t.Errorf("the program left %v on the router", left)
		}
	})
	return gw, told
}

// visit is somebody on the internet.
func visit(gw *gatewaytest.Gateway, at backends.Endpoint) (string, error) {
	client := &http.Client{
		Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true},
		Timeout:   30 * time.Second,
	}
	resp, err := client.Get("http://" + at.String())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func await(t *testing.T, told <-chan backends.Endpoint) backends.Endpoint {
	t.Helper()
	select {
	case at := <-told:
		return at
	case <-time.After(30 * time.Second):
		t.Fatal("the program tells nothing")
		return backends.Endpoint{}
	}
}

// Whichever protocol the router speaks, the internet gets in.
func TestReachable(t *testing.T) {
	for name, config := range map[string]gatewaytest.Config{
		"any protocol": {},
		"PCP":          {Protocols: []string{"pcp"}},
		"an old router with UPnP that grants for ever only": {
			Protocols: []string{"upnp"},
			Quirks:    quirks.Quirks{UPnP: quirks.UPnP{Version: 1, Leases: quirks.Leases{PermanentOnly: 725}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, told := run(t, config)
			if got, err := visit(gw, await(t, told)); err != nil || got != "hello from behind the router" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// A router that restarts has forgotten everything. The program gets in again,
// and tells of the new address.
func TestRouterRestarts(t *testing.T) {
	gw, told := run(t, gatewaytest.Config{})
	before := await(t, told)
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if _, err := visit(gw, before); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("while it has forgotten: %v", err)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.2")) // which is announced
	after := await(t, told)
	if after.Addr() == before.Addr() {
		t.Errorf("still told to be at %v", after)
	}
	if got, err := visit(gw, after); err != nil || got != "hello from behind the router" {
		t.Errorf("read %q, %v", got, err)
	}
}

// A router that refuses at first, by each of its protocols, is asked again.
func TestRouterRefuses(t *testing.T) {
	gw, told := run(t, gatewaytest.Config{}, gatewaytest.Fault{
		Result: 2, Times: 3, Match: func(r gatewaytest.Request) bool { return r.Op == "map" },
	})
	if got, err := visit(gw, await(t, told)); err != nil || got != "hello from behind the router" {
		t.Errorf("read %q, %v", got, err)
	}
	if stats := gw.Stats().Requests; stats["natpmp map tcp"] != 2 {
		t.Errorf("the router was asked %v", stats)
	}
}
