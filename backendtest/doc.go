// Package backendtest is the conformance suite of package backends: what any
// Backend must do, on whatever gateway it is run.
//
//	func TestContract(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T) backendtest.Fixture { … })
//	}
//
// Each test gets a fixture of its own: a backend and a gateway with an empty
// table. What the suite cannot do to the gateway (a nil field of [Fixture]) is
// skipped, and said so.
package backendtest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// Fixture is a backend, and what the suite can do to its gateway.
type Fixture struct {
	// Backend is the one under test. Its patience with a silent gateway should
	// be a second or so. The suite closes it.
	Backend backends.Backend
	// External is the gateway's external address.
	External netip.Addr
	// Table returns what the gateway forwards, of whatever host. Required: what
	// the gateway has counts, not what the backend says.
	Table func(*testing.T) []Row
	// Requests returns how many requests the gateway has received.
	Requests func(*testing.T) int
	// Reaches reports whether bytes from outside come in through the mapping.
	Reaches func(*testing.T, backends.Mapping) bool
	// Occupy gives an external port to another host.
	Occupy func(*testing.T, backends.Protocol, uint16)
	// Pass lets time pass at the gateway, at least so much.
	Pass func(*testing.T, time.Duration)
	// Refuse makes the gateway refuse mappings by policy from now on.
	Refuse func(*testing.T)
	// Silence makes the gateway answer nothing from now on.
	Silence func(*testing.T)
}

// Row is an entry of the gateway's table.
type Row struct {
	Protocol     backends.Protocol
	ExternalPort uint16
	InternalPort uint16
}

// Run runs the suite.
func Run(t *testing.T, start func(*testing.T) Fixture) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Fixture)
	}{
		{"Map", testMap},
		{"ExternalAddr", testExternalAddr},
		{"WishHonoured", testWishHonoured},
		{"WishReplaced", testWishReplaced},
		{"ExactHonoured", testExactHonoured},
		{"ExactConflict", testExactConflict},
		{"RenewInPlace", testRenewInPlace},
		{"RenewAfterExpiry", testRenewAfterExpiry},
		{"UnmapTwice", testUnmapTwice},
		{"UnmapOne", testUnmapOne},
		{"Everything", testEverything},
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

// need skips where the fixture cannot do something.
func need(t *testing.T, can bool, what string) {
	t.Helper()
	if !can {
		t.Skipf("this fixture cannot %s", what)
	}
}
