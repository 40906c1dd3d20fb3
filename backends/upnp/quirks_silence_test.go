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

// TestNoReplyLimit: a device is looked for again after two calls in a row without an
// answer. After one such call, it is asked where it was found.
func TestNoReplyLimit(t *testing.T) {
	for name, tt := range map[string]struct {
		silent    []bool // of each call: it gets no answer
		described int
	}{
		"one":               {[]bool{true, false}, 1},
		"two, one answered": {[]bool{true, false, true, false}, 1},
		"two in a row":      {[]bool{true, true, false}, 2},
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
				t.Errorf("described %d times, want %d", n, tt.described)
			}
		})
	}
}

// TestAnyPortAfterTimeout: a device that did not answer AddAnyPortMapping in time
// may have been busy. It is asked again at the next call.
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
		t.Error("mapped the port that is taken")
	}
	if n := count(gw, "AddAnyPortMapping"); n != 2 {
		t.Errorf("asked %d times for any port, want 2", n)
	}
}
