package forward_test

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var update = flag.Bool("update", false, "write the current error texts to testdata/errors.txt, for a review")

// failureKinds are the ways in which a protocol can fail.
var failureKinds = []struct {
	name              string
	natpmp, pcp, upnp gatewaytest.Fault
}{
	{
		"refuses",
		gatewaytest.Fault{Result: int(natpmp.NotAuthorized)},
		gatewaytest.Fault{Result: int(pcp.NotAuthorized)},
		gatewaytest.Fault{Result: int(upnp.ActionNotAuthorized)},
	},
	{"does not reply", gatewaytest.Fault{Drop: true}, gatewaytest.Fault{Drop: true}, gatewaytest.Fault{Drop: true}},
	{
		"sends malformed replies",
		gatewaytest.Fault{Result: 99},
		gatewaytest.Fault{Result: 99},
		gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 200 OK\r\n\r\nnonsense")} }},
	},
	{
		"is behind another NAT",
		gatewaytest.Fault{Result: int(natpmp.NetworkFailure)},
		gatewaytest.Fault{Reply: behindNAT},
		gatewaytest.Fault{Result: int(upnp.ActionFailed)},
	},
}

// behindNAT returns the reply of a common daemon to a MAP request while its own address
// is private: it sends that address instead of the external one.
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

// TestErrorText checks the error text for every combination of three protocols that fail.
func TestErrorText(t *testing.T) {
	const path = "testdata/errors.txt"
	texts := make([]string, len(failureKinds)*len(failureKinds)*len(failureKinds))
	var combinations sync.WaitGroup
	atOnce := make(chan struct{}, 16) // they wait for timeouts most of the time
	for i := range texts {
		combinations.Go(func() {
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			n := len(failureKinds)
			first, second, third := failureKinds[i/n/n], failureKinds[i/n%n], failureKinds[i%n]
			texts[i] = "== NAT-PMP " + first.name + ", PCP " + second.name + ", UPnP " + third.name + "\n" +
				errorText(t, map[string]gatewaytest.Fault{"natpmp": first.natpmp, "pcp": second.pcp, "upnp": third.upnp}) + "\n\n"
		})
	}
	combinations.Wait()
	got := strings.Join(texts, "")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

// errorText returns the error of Enable on a gateway with one fault for each protocol.
func errorText(t *testing.T, faults map[string]gatewaytest.Fault) string {
	t.Helper()
	gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		Status: quirks.Status{External: func(netip.Addr) string { return "" }},
	}}})
	if err != nil {
		return err.Error()
	}
	defer func() { _ = gw.Close() }()
	f, err := forward.New(&forward.Config{
		Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP(), Announce: netip.MustParseAddrPort("127.0.0.1:0")},
		DiscoveryTimeout: 2 * time.Second, RequestTimeout: 20 * time.Second,
	})
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	for service, fault := range faults {
		fault.Match = func(r gatewaytest.Request) bool {
			silenced := r.Service == service || service == "upnp" && r.Service == "ssdp"
			return fault.Drop && silenced || r.Service == service && r.Op == "map"
		}
		gw.Inject(fault)
	}
	_, err = f.Enable(t.Context(), forward.TCP(8080))
	var e *forward.Error
	if !errors.As(err, &e) || !errors.Is(err, e.Kind) {
		t.Errorf("Enable: %v", err)
		return ""
	}
	lines := strings.Split(strings.ReplaceAll(err.Error(), gw.Addr().String(), "GATEWAY"), "\n")
	slices.Sort(lines[1 : len(lines)-1]) // on a slow machine, the protocols become available in another order
	return strings.Join(lines, "\n")
}
