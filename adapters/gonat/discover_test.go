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

// TestDiscover checks that DiscoverNATs yields the Gateway that DiscoverGateway returned, and
// that Close deletes its mappings. The next discovery creates a new Gateway.
func TestDiscover(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	nat.SetDiscoverConfig(gw.Config())
	defer nat.SetDiscoverConfig(nil)
	defer nat.Close()
	g, err := nat.DiscoverGateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []nat.NAT
	for n := range nat.DiscoverNATs(t.Context()) {
		all = append(all, n)
	}
	if len(all) != 1 || all[0] != g {
		t.Errorf("DiscoverGateway found %v, then DiscoverNATs %v", g, all)
	}
	internal := startGreeter(t)
	external, err := g.AddPortMapping(t.Context(), "tcp", internal, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := dialFromOutside(t, gw, external); err != nil {
		t.Error(err)
	}
	if err := nat.Close(); err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("after Close, the gateway has %v, want no mappings", table)
	}
	if again, err := nat.DiscoverGateway(t.Context()); err != nil || again == g {
		t.Errorf("DiscoverGateway after Close: %v, %v, want a new Gateway", again, err)
	}
}

// TestDiscoverFails checks the errors without a gateway, with a cancelled context, and with
// an invalid Config.
func TestDiscoverFails(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := gw.Config()
	c.DiscoveryTimeout = 100 * time.Millisecond
	nat.SetDiscoverConfig(c)
	defer nat.SetDiscoverConfig(nil)
	defer nat.Close()
	gw.Close()
	if g, err := nat.DiscoverGateway(t.Context()); g != nil || !errors.Is(err, nat.ErrNoNATFound) || !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("without a gateway: found %v, %v", g, err)
	}
	for n := range nat.DiscoverNATs(t.Context()) {
		t.Errorf("without a gateway: DiscoverNATs found %v", n)
	}
	cause := errors.New("cancelled by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := nat.DiscoverGateway(ctx); !errors.Is(err, cause) {
		t.Errorf("with a cancelled context: %v", err)
	}
	nat.SetDiscoverConfig(&forward.Config{DiscoveryTimeout: -1})
	_ = nat.Close()
	if _, err := nat.DiscoverGateway(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("with an invalid config: %v", err)
	}
}
