package nat_test

import (
	"context"
	"errors"
	"testing"
	"time"

	nat "github.com/natforward/goforward/adapters/gonat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func TestDiscover(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	nat.Discover(gw.Config())
	defer nat.Discover(nil)
	defer nat.Close()
	found, err := nat.DiscoverGateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []nat.NAT
	for n := range nat.DiscoverNATs(t.Context()) {
		all = append(all, n)
	}
	if len(all) != 1 || all[0] != found {
		t.Errorf("found %v, then %v", found, all)
	}
	inside := greeter(t)
	outside, err := found.AddPortMapping(t.Context(), "tcp", inside, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(t, gw, outside); err != nil {
		t.Error(err)
	}
	if err := nat.Close(); err != nil {
		t.Error(err)
	}
	if left := gw.Table(); len(left) != 0 {
		t.Errorf("closed, and the gateway has %v", left)
	}
	if again, err := nat.DiscoverGateway(t.Context()); err != nil || again == found {
		t.Errorf("after Close: %v, %v", again, err)
	}
}

func TestDiscoverNothing(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := gw.Config()
	c.DiscoveryTimeout = 100 * time.Millisecond
	nat.Discover(c)
	defer nat.Discover(nil)
	defer nat.Close()
	gw.Close()
	if found, err := nat.DiscoverGateway(t.Context()); found != nil || !errors.Is(err, nat.ErrNoNATFound) || !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("found %v, %v", found, err)
	}
	for n := range nat.DiscoverNATs(t.Context()) {
		t.Errorf("found %v", n)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := nat.DiscoverGateway(ctx); !errors.Is(err, cause) {
		t.Errorf("with an ended context: %v", err)
	}
	nat.Discover(&forward.Config{DiscoveryTimeout: -1})
	_ = nat.Close()
	if _, err := nat.DiscoverGateway(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("with an invalid config: %v", err)
	}
}
