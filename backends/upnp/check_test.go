package upnp_test

import (
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestCheckDuringRenewal checks that an entry is not missing for a lookup while a renewal deletes it
// and creates it again.
func TestCheckDuringRenewal(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, leases(quirks.Leases{NoRefresh: true}))
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Advance(30 * time.Minute)
	isDeletion := func(r gatewaytest.Request) bool { return r.Action == "DeletePortMapping" }
	defer gw.Inject(gatewaytest.Fault{Match: isDeletion, Delay: 100 * time.Millisecond})()
	renewed := make(chan error, 1)
	go func() {
		_, err := b.Renew(t.Context(), m, request(8080, 9000))
		renewed <- err
	}()
	if _, err := gw.AwaitRequests(t.Context(), 1, isDeletion); err != nil {
		t.Fatal(err)
	}
	if err := b.LookUp(t.Context(), m); err != nil {
		t.Errorf("the lookup during the renewal: %v", err)
	}
	if err := <-renewed; err != nil {
		t.Error(err)
	}
}
