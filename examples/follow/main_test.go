package main

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestMainFollows runs the unchanged example on a test gateway. The address and the table of
// the gateway change during the test.
func TestMainFollows(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot interrupt itself on Windows")
	}
	gw, err := stage.Router(gatewaytest.Config{Announce: netip.MustParseAddrPort("127.0.0.1:0")}) // without announcements
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	defer forward.Close()
	program, err := stage.Run(main)
	if err != nil {
		t.Fatal(err)
	}
	expectLine := func(want ...string) {
		t.Helper()
		if line, err := program.Line(); err != nil || !slices.Contains(want, line) {
			t.Fatalf("the program printed %q, %v, want one of %q", line, err, want)
		}
	}
	expectLine("45.45.45.1:9000 by natpmp: enabled")

	gw.SetExternal(netip.MustParseAddr("45.45.45.2"))
	if err := forward.Refresh(); err != nil { // earlier than the next renewal
		t.Fatal(err)
	}
	expectLine("45.45.45.2:9000 by natpmp: refreshed", // the watch of the gateway can be sooner
		"45.45.45.2:9000 by natpmp: the external address was 45.45.45.1 and is 45.45.45.2")

	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: true}) // else the epoch can be the reason that is printed
	if err := gw.AddMapping(gatewaytest.Entry{              // another host maps the port first
		Protocol: backends.UDP, Internal: netip.MustParseAddrPort("127.0.0.9:80"), External: netip.AddrPortFrom(gw.External(), 9000),
	}); err != nil {
		t.Fatal(err)
	}
	if err := forward.Refresh(); err != nil {
		t.Fatal(err)
	}
	expectLine("45.45.45.2:9001 by natpmp: refreshed")

	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	expectLine("deleted")
	_ = program.Wait()
	if table := gw.Table(); len(table) != 1 {
		t.Errorf("the gateway has %v", table)
	}
}
