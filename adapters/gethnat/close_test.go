package gethnat_test

import (
	"context"
	"errors"
	"testing"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// wantClosed wants calls to fail, and deletions to have nothing to do.
func wantClosed(t *testing.T, n *gethnat.NAT) {
	t.Helper()
	if got, err := n.AddMapping("TCP", 0, port, name, lifetime); got != 0 || !errors.Is(err, forward.ErrClosed) {
		t.Errorf("AddMapping: %d, %v, want ErrClosed", got, err)
	}
	if ip, err := n.ExternalIP(); ip != nil || !errors.Is(err, forward.ErrClosed) {
		t.Errorf("ExternalIP: %v, %v, want ErrClosed", ip, err)
	}
	for _, protocol := range []string{"TCP", "UDP"} {
		if err := n.DeleteMapping(protocol, port, port); err != nil {
			t.Errorf("DeleteMapping %s: %v", protocol, err)
		}
	}
}

// Close takes away what the NAT holds, and leaves the Forwarder to its owner.
func TestClose(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	n := gethnat.New(f)
	add(t, n, "TCP", 0)
	add(t, n, "UDP", 0)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if table := gw.Table(); len(table) != 1 || table[0].External.Port() != 8080 {
		t.Errorf("the gateway has %v, want port 8080", table)
	}
	wantClosed(t, n)
	if err := f.Disable(t.Context()); err != nil {
		t.Errorf("the Forwarder does not work any more: %v", err)
	}
}

// A Forwarder of its own ends with it.
func TestCloseOwn(t *testing.T) {
	n := gethnat.New(nil)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	wantClosed(t, n)
}

func TestForwarderClosed(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	add(t, n, "TCP", 0)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want nothing", table)
	}
	wantClosed(t, n)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// What is granted to a NAT that was closed meanwhile is given back.
func TestCloseMeanwhile(t *testing.T) {
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	isMap := func(r gatewaytest.Request) bool { return r.Op == "map" }
	answer := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: answer})
	done := make(chan error)
	go func() {
		_, err := n.AddMapping("TCP", 0, port, name, lifetime)
		done <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	close(answer)
	if err := <-done; !errors.Is(err, forward.ErrClosed) {
		t.Errorf("AddMapping: %v, want ErrClosed", err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want nothing", table)
	}
}

// What is deleted while it is being asked for is gone in the end.
func TestDeleteMeanwhile(t *testing.T) {
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	isMap := func(r gatewaytest.Request) bool { return r.Op == "map" }
	answer := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: answer})
	added, begun, deleted := make(chan error), make(chan struct{}), make(chan error)
	go func() {
		_, err := n.AddMapping("TCP", 0, port, name, lifetime)
		added <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Error(err)
	}
	go func() {
		close(begun)
		deleted <- n.DeleteMapping("TCP", port, port)
	}()
	<-begun
	close(answer)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want nothing", table)
	}
}
