package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestMainTidies runs the unchanged example on a test gateway that allows every host to
// delete the mappings of other hosts.
func TestMainTidies(t *testing.T) {
	gw, err := stage.Router(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	defer forward.Close()
	for i, description := range []string{"old game", "printer", "old game"} {
		err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.77.9:80"),
			External:    netip.AddrPortFrom(gw.External(), 8080+uint16(i)),
			Description: description, Remaining: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) []string {
		program, err := stage.Run(main, args...)
		if err != nil {
			t.Fatal(err)
		}
		return program.Wait()
	}
	want := []string{
		`tcp 45.45.45.1:8080 → 192.168.77.9:80 "old game" 1h0m0s`,
		`tcp 45.45.45.1:8081 → 192.168.77.9:80 "printer" 1h0m0s`,
		`tcp 45.45.45.1:8082 → 192.168.77.9:80 "old game" 1h0m0s`,
	}
	if diff := cmp.Diff(want, run()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	want = []string{`deleted 2 of "old game"`, `deleted 0 of "new game"`, want[1]}
	if diff := cmp.Diff(want, run("old game", "new game")); diff != "" {
		t.Errorf("delete (-want +got):\n%s", diff)
	}
}
