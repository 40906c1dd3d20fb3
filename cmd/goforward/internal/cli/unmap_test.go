package cli

import (
	"slices"
	"testing"

	"github.com/natforward/goforward/gatewaytest"
)

// A gateway may refuse to delete by one protocol what another protocol made. unmap asks
// again by the first protocol after another one has deleted the mapping.
func TestUnmapAsksAgain(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if got := run(t, nil, append(at, "map", "8080", "--backend", "pcp")...); got.code != exitDone || len(gw.Table()) != 1 {
		t.Fatalf("map by PCP: %+v; the gateway has %v", got, gw.Table())
	}
	before := len(gw.Requests())
	if got := run(t, nil, append(at, "unmap", "8080")...); got.code != exitDone || len(gw.Table()) != 0 {
		t.Errorf("unmap: %+v; the gateway has %v; want exit code 0 and no mapping", got, gw.Table())
	}
	var asked []string // by which protocols; a request may be repeated
	for _, r := range gw.Requests()[before:] {
		if r.Op == gatewaytest.OpUnmap {
			asked = append(asked, r.Service)
		}
	}
	if want := []string{"natpmp", "pcp", "natpmp"}; !slices.Equal(slices.Compact(asked), want) {
		t.Errorf("deletions were asked for by %v, want %v", asked, want)
	}
}
