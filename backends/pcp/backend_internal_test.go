package pcp

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// How long a refusal holds: as the server says, within bounds.
func TestHolds(t *testing.T) {
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.1:80")}
	for name, test := range map[string]struct {
		code     ResultCode
		lifetime time.Duration
		want     time.Duration
	}{
		"as said":            {NotAuthorized, 10 * time.Minute, 10 * time.Minute},
		"long, said to be 0": {NotAuthorized, 0, 5 * time.Minute},
		"short, but 0":       {NoResources, 0, 30 * time.Second},
		"short":              {NoResources, time.Minute, time.Minute},
		"absurd":             {NoResources, backends.Forever, 30 * time.Minute},
	} {
		var h holds
		now, failure := time.Now(), errors.New("refused")
		h.add(r, &ResultError{Code: test.code, Lifetime: test.lifetime}, failure, now)
		if err := h.check(r, now.Add(test.want-time.Second)); !errors.Is(err, failure) {
			t.Errorf("%s: %v a second before %v", name, err, test.want)
		}
		other := r
		other.External = netip.AddrPortFrom(netip.Addr{}, 81)
		if err := h.check(other, now); err != nil {
			t.Errorf("%s: another request: %v", name, err)
		}
		if err := h.check(r, now.Add(test.want)); err != nil {
			t.Errorf("%s: %v after %v", name, err, test.want)
		}
	}
	var h holds
	for i := range 10 * maxHolds {
		r.External = netip.AddrPortFrom(netip.Addr{}, uint16(i))
		h.add(r, &ResultError{Code: NoResources}, errors.New("refused"), time.Now())
	}
	if len(h.byKey) > maxHolds {
		t.Errorf("%d refusals remembered", len(h.byKey))
	}
	h.forget()
	if err := h.check(r, time.Now()); err != nil {
		t.Errorf("after forget: %v", err)
	}
}
