package upnp_test

import (
	"errors"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestNoReplyLimit checks that a new search follows two consecutive calls without a
// reply. After a single one, the next call uses the known address.
func TestNoReplyLimit(t *testing.T) {
	for name, tt := range map[string]struct {
		silent    []bool // for each call: whether it gets no reply
		described int
	}{
		"one":                  {[]bool{true, false}, 1},
		"two, not consecutive": {[]bool{true, false, true, false}, 1},
		"two, consecutive":     {[]bool{true, true, false}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			if err := b.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, silent := range tt.silent {
				var want error
				if silent {
					want = backends.ErrNoReply
					gw.Inject(gatewaytest.Fault{Match: isAction("GetExternalIPAddress"), Times: 1, Drop: true})
				}
				if _, err := b.ExternalAddr(t.Context()); !errors.Is(err, want) {
					t.Errorf("call %d: %v, want %v", i, err, want)
				}
			}
			if n := gw.Stats().Requests["upnp describe"]; n != tt.described {
				t.Errorf("%d requests of the description, want %d", n, tt.described)
			}
		})
	}
}

// TestAnyPortAfterTimeout checks that AddAnyPortMapping is sent again in the next
// call after a timeout: the device may have been busy.
func TestAnyPortAfterTimeout(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{Timeout: time.Second / 2})
	occupy(t, gw, 9000)
	end := make(chan struct{})
	defer close(end)
	gw.Inject(gatewaytest.Fault{Match: isAction("AddAnyPortMapping"), Times: 1, Drop: true, Hold: end})
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNoReply, 0)
	if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() == 9000 {
		t.Error("mapped the port that is in use")
	}
	if n := count(gw, "AddAnyPortMapping"); n != 2 {
		t.Errorf("%d requests of AddAnyPortMapping, want 2", n)
	}
}
