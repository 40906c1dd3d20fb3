package backendtest

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// requireChecker returns the backend as a Checker. If it is none, the test is skipped.
func requireChecker(t *testing.T, f Fixture) backends.Checker {
	t.Helper()
	c, is := f.Backend.(backends.Checker)
	requireSupport(t, is, "check a mapping: the backend is no Checker")
	return c
}

// testCheck checks that a mapping that exists is not reported as missing, and that a deleted
// one is not reported as present.
func testCheck(t *testing.T, f Fixture) {
	c := requireChecker(t, f)
	deleted := mustMap(t, f, request(backends.TCP, 6881, 0))
	other := mustMap(t, f, request(backends.TCP, 6882, 0))
	for range 2 {
		if err := c.Check(t.Context(), deleted); err != nil && !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("Check of a mapping: %v, want nil or ErrUnsupported", err)
		}
	}
	requireTable(t, f, rowOf(deleted), rowOf(other))
	if err := f.Backend.Unmap(t.Context(), deleted); err != nil {
		t.Errorf("Unmap: %v", err)
	}
	if err := c.Check(t.Context(), deleted); !errors.Is(err, backends.ErrNoMapping) && !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Check of a deleted mapping: %v, want ErrNoMapping or ErrUnsupported", err)
	}
	requireTable(t, f, rowOf(other))
}

// testCheckRestart checks that a mapping is not reported as present after the gateway has lost
// it. The reply shows the restart, so the state of the mapping is unknown: Watch is about to
// report the restart.
func testCheckRestart(t *testing.T, f Fixture) {
	c := requireChecker(t, f)
	requireSupport(t, f.Restart != nil && f.Pass != nil, "restart the gateway and advance its time")
	f.Pass(t, time.Hour)
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	if err := c.Check(t.Context(), m); err != nil && !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Check before the restart: %v, want nil or ErrUnsupported", err)
	}
	f.Restart(t)
	err := c.Check(t.Context(), m)
	for _, known := range []error{nil, backends.ErrNoMapping, backends.ErrUnsupported, backends.ErrNoReply} {
		if errors.Is(err, known) {
			t.Errorf("Check after the restart: %v, want an error for an unknown state", err)
		}
	}
}

// testCheckFailure checks the errors of Check if it cannot ask the gateway, or gets no reply.
func testCheckFailure(t *testing.T, f Fixture) {
	c := requireChecker(t, f)
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	if err := c.Check(t.Context(), backends.Mapping{}); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Check of the zero mapping: %v, want ErrInvalid", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Check(cancelled, m); !errors.Is(err, context.Canceled) {
		t.Errorf("Check with a cancelled context: %v, want Canceled", err)
	}
	if f.Silence != nil {
		f.Silence(t)
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		if err := c.Check(ctx, m); !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Check without a reply: %v, want ErrNoReply from the backend's own timeout", err)
		}
	}
	if err := f.Backend.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := c.Check(t.Context(), m); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Check after Close: %v, want net.ErrClosed", err)
	}
}
