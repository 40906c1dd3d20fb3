package discover

import (
	"errors"
	"testing"

	"golang.org/x/sys/windows"
)

// TestCallMissing checks that a missing function is an error and causes no panic.
func TestCallMissing(t *testing.T) {
	for _, p := range []*windows.LazyProc{
		iphlpapi.NewProc("GetNothing"),
		windows.NewLazySystemDLL("nothing-goforward.dll").NewProc("GetBestRoute2"),
	} {
		if err := call(p); !errors.Is(err, errMissing) || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// TestSystem checks that the functions of this system cause no panic, and that Gateways
// begins with the route that Default returns.
func TestSystem(t *testing.T) {
	g, err := Default()
	if err != nil && !errors.Is(err, ErrNoRoute) {
		t.Error(err)
	}
	list, listErr := Gateways()
	if listErr != nil {
		t.Error(listErr)
	}
	if err == nil && (len(list) == 0 || list[0] != g) {
		t.Errorf("Default returns %+v, Gateways %+v", g, list)
	}
	t.Logf("default route: %+v, %v", g, err)
	for _, is6 := range []bool{false, true} {
		routes, err := ipforwardTable(is6)
		t.Logf("%d routes, %v", len(routes), err)
		for _, r := range routes {
			metric, metricErr := interfaceMetric(r.index, is6)
			t.Logf("%v via %v, interface %d, metric %d + %d, %v", r.dst, r.via, r.index, r.metric, metric, metricErr)
		}
	}
	best, err := bestRoute(internet4, 0)
	t.Logf("GetBestRoute2: %+v, %v", best, err)
	hints, stop, err := openHints()
	if (err == nil) != (hints != nil && stop != nil) {
		t.Errorf("hints %v, %v", hints, err)
	}
	t.Logf("hints: %v", err)
	if err == nil {
		stop()
	}
}
