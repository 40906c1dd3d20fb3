// Package backendtest is the conformance suite of package backends: it checks what
// every Backend must do, on any gateway.
//
//	func TestContract(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T) backendtest.Fixture { … })
//	}
//
// Each test gets its own fixture: a backend and a gateway with an empty table. A
// test that needs a field of [Fixture] that is nil is skipped, and its output has
// the reason.
package backendtest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// Fixture is a backend under test, and the functions with which the suite controls
// and observes its gateway.
type Fixture struct {
	// Backend is the backend under test. It should report ErrNoReply after about
	// one second if the gateway is silent. The suite closes it.
	Backend backends.Backend
	// External is the gateway's external address.
	External netip.Addr
	// Table returns the entries that the gateway forwards, for all hosts. It is
	// required: the suite checks the gateway's table, not only what the backend
	// reports.
	Table func(*testing.T) []Row
	// Requests returns how many requests the gateway has received.
	Requests func(*testing.T) int
	// Reaches reports whether bytes from outside arrive through the mapping.
	Reaches func(*testing.T, backends.Mapping) bool
	// Occupy maps an external port to another host.
	Occupy func(*testing.T, backends.Protocol, uint16)
	// Pass advances the gateway's time by at least the duration.
	Pass func(*testing.T, time.Duration)
	// Refuse makes the gateway refuse all later mappings by policy.
	Refuse func(*testing.T)
	// Restart makes the gateway lose its mappings and start its clocks again, without an
	// announcement.
	Restart func(*testing.T)
	// Silence makes the gateway ignore all later requests.
	Silence func(*testing.T)
}

// Row is an entry of the gateway's table.
type Row struct {
	Protocol     backends.Protocol
	ExternalPort uint16
	InternalPort uint16
}

// Run runs the suite. It calls start for each test.
func Run(t *testing.T, start func(*testing.T) Fixture) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Fixture)
	}{
		{"Map", testMap},
		{"ExternalAddr", testExternalAddr},
		{"SuggestedPort", testSuggestedPort},
		{"SuggestedPortTaken", testSuggestedPortTaken},
		{"ExactPort", testExactPort},
		{"ExactConflict", testExactConflict},
		{"RenewInPlace", testRenewInPlace},
		{"RenewAfterExpiry", testRenewAfterExpiry},
		{"UnmapTwice", testUnmapTwice},
		{"UnmapOne", testUnmapOne},
		{"Check", testCheck},
		{"CheckRestart", testCheckRestart},
		{"CheckFailure", testCheckFailure},
		{"Wildcards", testWildcards},
		{"Refusal", testRefusal},
		{"Silence", testSilence},
		{"Deadline", testDeadline},
		{"Cancelled", testCancelled},
		{"Concurrent", testConcurrent},
		{"Close", testClose},
		{"CloseDuringCall", testCloseDuringCall},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := start(t)
			t.Cleanup(func() {
				if err := f.Backend.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test.run(t, f)
		})
	}
}

// requireSupport skips the test if the fixture does not support an operation.
func requireSupport(t *testing.T, supported bool, what string) {
	t.Helper()
	if !supported {
		t.Skipf("this fixture cannot %s", what)
	}
}
