package labtest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lab"
)

// Another NAT stands before the router. NAT-PMP cannot tell a private address
// from none at all; this router's PCP tells which address it is.
func TestPrivateWAN(t *testing.T) {
	t.Parallel()
	for wan, text := range map[string]string{
		"10.66.66.1/24": "behind another router",
		"100.64.0.1/24": "behind the provider's NAT",
	} {
		t.Run(wan, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the router's own address is "+wan)
			home := lab.Home(t, lab.Router{WAN: netip.MustParsePrefix(wan)})
			natpmp := counts(t, home.Router, "input", "natpmp", `iifname "lan0" udp dport 5351 @th,64,8 0 @th,72,8 { 1, 2 }`)
			pcp := counts(t, home.Router, "input", "pcp", `iifname "lan0" udp dport 5351 @th,64,16 0x0201`)
			f := newForwarder(t, home.Lan, config{})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080)}})
			t.Logf("the verdict came after %v", got.Took)
			wantKinds(t, got.Failure.err(), backends.ErrPrivateWAN)
			if got.Failure != nil && !strings.Contains(got.Failure.Text, text) {
				t.Errorf("the error does not say %q", text)
			}
			// No other port is tried, of eight: the router would refuse any. A request that
			// is not answered in 250 ms, on a machine that stands still, is repeated.
			if n := natpmp.now(t); n < 1 || n > 2 {
				t.Errorf("%d NAT-PMP requests, want one, or its repetition", n)
			}
			if n := pcp.now(t); n < 1 || n > 4 { // with a description, and without
				t.Errorf("%d PCP requests, want one or two, or their repetitions", n)
			}
			wantRules(t, home, 0)
		})
	}
}
