package pcp

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestRefusalCache checks how long a refusal is cached: for its lifetime, within
// bounds.
func TestRefusalCache(t *testing.T) {
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.1:80")}
	for name, test := range map[string]struct {
		code     ResultCode
		lifetime time.Duration
		want     time.Duration
	}{
		"lifetime of the response":          {NotAuthorized, 10 * time.Minute, 10 * time.Minute},
		"long-lived error with lifetime 0":  {NotAuthorized, 0, 5 * time.Minute},
		"short-lived error with lifetime 0": {NoResources, 0, 30 * time.Second},
		"short-lived error":                 {NoResources, time.Minute, time.Minute},
		"excessive lifetime":                {NoResources, backends.Forever, 30 * time.Minute},
	} {
		var cache refusals
		now, failure := time.Now(), errors.New("refused")
		cache.add(r, &ResultError{Code: test.code, Lifetime: test.lifetime}, failure, now)
		if err := cache.check(r, now.Add(test.want-time.Second)); !errors.Is(err, failure) {
			t.Errorf("%s: %v a second before %v", name, err, test.want)
		}
		other := r
		other.External = netip.AddrPortFrom(netip.Addr{}, 81)
		if err := cache.check(other, now); err != nil {
			t.Errorf("%s: another request: %v", name, err)
		}
		if err := cache.check(r, now.Add(test.want)); err != nil {
			t.Errorf("%s: %v after %v", name, err, test.want)
		}
	}
	var cache refusals
	for i := range 10 * maxRefusals {
		r.External = netip.AddrPortFrom(netip.Addr{}, uint16(i))
		cache.add(r, &ResultError{Code: NoResources}, errors.New("refused"), time.Now())
	}
	if len(cache.byKey) > maxRefusals {
		t.Errorf("%d refusals cached", len(cache.byKey))
	}
	cache.clear()
	if err := cache.check(r, time.Now()); err != nil {
		t.Errorf("after clear: %v", err)
	}
}
