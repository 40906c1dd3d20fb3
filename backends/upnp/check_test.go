package upnp_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
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

// TestCheck checks the results of a check of an entry: it exists, another host has its port, and it
// is missing.
func TestCheck(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	gw.Advance(time.Hour)
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Advance(time.Minute)
	if err := b.Check(t.Context(), m); err != nil {
		t.Errorf("with the entry: %v", err)
	}
	gw.RemoveMapping(backends.TCP, 9000)
	other := gatewaytest.Entry{
		Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 9000),
		Internal: netip.MustParseAddrPort("192.0.2.33:80"), Remaining: time.Hour,
	}
	if err := gw.AddMapping(other); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context(), m); !errors.Is(err, backends.ErrNoMapping) {
		t.Errorf("with an entry of another host: %v", err)
	}
	gw.RemoveMapping(backends.TCP, 9000)
	if err := b.Check(t.Context(), m); !errors.Is(err, backends.ErrNoMapping) {
		t.Errorf("without the entry: %v", err)
	}
}
