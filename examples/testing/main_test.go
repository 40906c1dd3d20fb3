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

// run runs the program behind a test router until the test ends. It returns the router and
// the external endpoints of the program.
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
	endpoints := make(chan backends.Endpoint, 10)
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, f, func(at backends.Endpoint) { endpoints <- at }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		_ = f.Close()
		if table := gw.Table(); len(table) != 0 {
			t.Errorf("the program left %v on the router", table)
		}
	})
	return gw, endpoints
}

// get sends a request from the internet side of the router.
func get(gw *gatewaytest.Gateway, at backends.Endpoint) (string, error) {
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

// await waits for the next external endpoint of the program.
func await(t *testing.T, endpoints <-chan backends.Endpoint) backends.Endpoint {
	t.Helper()
	select {
	case at := <-endpoints:
		return at
	case <-time.After(30 * time.Second):
		t.Fatal("the program reported no endpoint within 30 s")
		return backends.Endpoint{}
	}
}

// TestReachable checks that the program is reachable from the internet with each protocol.
func TestReachable(t *testing.T) {
	for name, config := range map[string]gatewaytest.Config{
		"any protocol": {},
		"PCP":          {Protocols: []string{"pcp"}},
		"an old UPnP router that grants only permanent mappings": {
			Protocols: []string{"upnp"},
			Quirks:    quirks.Quirks{UPnP: quirks.UPnP{Version: 1, Leases: quirks.Leases{PermanentOnly: 725}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, endpoints := run(t, config)
			if got, err := get(gw, await(t, endpoints)); err != nil || got != "hello from behind the router" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// TestRouterRestarts checks that the program is reachable again after a restart of the router,
// which deletes all mappings. The program reports its new external address.
func TestRouterRestarts(t *testing.T) {
	gw, endpoints := run(t, gatewaytest.Config{})
	before := await(t, endpoints)
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if _, err := get(gw, before); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the restart, want ECONNREFUSED: %v", err)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.2")) // sends an announcement
	after := await(t, endpoints)
	if after.Addr() == before.Addr() {
		t.Errorf("the reported endpoint is still %v", after)
	}
	if got, err := get(gw, after); err != nil || got != "hello from behind the router" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestRouterRefuses checks that the program retries if the router first refuses the request
// with each of its protocols.
func TestRouterRefuses(t *testing.T) {
	gw, endpoints := run(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}}, gatewaytest.Fault{
		Result: 2, Times: 2, Match: func(r gatewaytest.Request) bool { return r.Op == "map" },
	})
	if got, err := get(gw, await(t, endpoints)); err != nil || got != "hello from behind the router" {
		t.Errorf("read %q, %v", got, err)
	}
	if stats := gw.Stats().Requests; stats["natpmp map tcp"] != 2 {
		t.Errorf("the router received %v", stats)
	}
}
