package forward_test

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

var update = flag.Bool("update", false, "write what the errors say now to testdata/errors.txt, to be read by a person")

// The ways for a protocol to fail.
var failures = []struct {
	name        string
	natpmp, pcp gatewaytest.Fault
}{
	{"refuses", gatewaytest.Fault{Result: int(natpmp.NotAuthorized)}, gatewaytest.Fault{Result: int(pcp.NotAuthorized)}},
	{"is silent", gatewaytest.Fault{Drop: true}, gatewaytest.Fault{Drop: true}},
	{"makes no sense", gatewaytest.Fault{Result: 99}, gatewaytest.Fault{Result: 99}},
	{"is behind another NAT", gatewaytest.Fault{Result: int(natpmp.NetworkFailure)}, gatewaytest.Fault{Reply: behindNAT}},
}

// behindNAT is what a common daemon answers to a MAP request while its own
// address is private: that address, in the place of the external one.
func behindNAT(request []byte) [][]byte {
	r, err := pcp.ParseMapRequest(request)
	if err != nil {
		b, _ := pcp.AnnounceResponse{}.MarshalBinary()
		return [][]byte{b}
	}
	b, _ := pcp.MapResponse{
		Result: pcp.NoResources, Lifetime: 30 * time.Second, Nonce: r.Nonce, Protocol: r.Protocol,
		InternalPort: r.InternalPort, External: netip.MustParseAddr("10.66.66.1"),
	}.MarshalBinary()
	return [][]byte{b}
}

// What a person reads for every combination of two protocols that fail.
func TestErrorText(t *testing.T) {
	const path = "testdata/errors.txt"
	var got strings.Builder
	for _, first := range failures {
		for _, second := range failures {
			got.WriteString("== NAT-PMP " + first.name + ", PCP " + second.name + "\n")
			got.WriteString(errorText(t, first.natpmp, second.pcp) + "\n\n")
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func errorText(t *testing.T, byNATPMP, byPCP gatewaytest.Fault) string {
	t.Helper()
	gw, f := start(t, forward.Config{Wait: 300 * time.Millisecond, Timeout: 10 * time.Second}, gatewaytest.Config{})
	for service, fault := range map[string]gatewaytest.Fault{"natpmp": byNATPMP, "pcp": byPCP} {
		fault.Match = func(r gatewaytest.Request) bool {
			return r.Service == service && (fault.Drop || r.Op == gatewaytest.OpMap)
		}
		gw.Inject(fault)
	}
	_, err := f.Enable(t.Context(), forward.TCP(8080))
	var e *forward.Error
	if !errors.As(err, &e) || !errors.Is(err, e.Kind) {
		t.Fatalf("Enable: %v", err)
	}
	return strings.ReplaceAll(err.Error(), gw.Addr().String(), "GATEWAY")
}
