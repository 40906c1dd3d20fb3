package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	several := func(kind error, noGateway bool, attempts ...error) error {
		return &forward.Error{Kind: kind, NoGateway: noGateway, Attempts: attempts}
	}
	for _, tt := range []struct {
		err  error
		kind string
		code int
	}{
		{errors.New("another error"), "other", 1},
		{fmt.Errorf("x: %w", backends.ErrUnsupported), "unsupported", 1},
		{backends.ErrMalformed, "malformed", 1},
		{fmt.Errorf("%w: %w", errNotUnmapped, backends.ErrNoReply), "not_unmapped", 1},
		{fmt.Errorf("%w: %w", errInterrupted, backends.ErrNoReply), "interrupted", 1},
		{usagef("what?"), "usage", 2},
		{backends.ErrInvalid, "usage", 2},
		{&upnp.Fault{Action: "DeletePortMapping", Code: upnp.SpecifiedArrayIndexInvalid}, "other", 1},
		{several(backends.ErrUnsupported, false, &upnp.Fault{Action: "AddPortMapping", Code: upnp.NoSuchEntryInArray}), "unsupported", 1},
		{sentError{backends.ErrInvalid}, "other", 1},
		{errors.Join(&upnp.Fault{Code: upnp.NoSuchEntryInArray}, &upnp.Fault{Code: upnp.ActionNotAuthorized}), "not_authorized", 4},
		{forward.ErrNoGateway, "no_gateway", 3},
		{several(backends.ErrNoReply, true, backends.ErrNoReply), "no_gateway", 3},
		{backends.ErrNotAuthorized, "not_authorized", 4},
		{backends.ErrPrivateWAN, "private_wan", 4},
		{backends.ErrNetworkFailure, "network_failure", 4},
		{backends.ErrNoResources, "no_resources", 4},
		{several(backends.ErrNotAuthorized, false, backends.ErrNoReply, backends.ErrNotAuthorized, backends.ErrUnsupported), "not_authorized", 4},
		{several(backends.ErrConflict, false, backends.ErrNotAuthorized, backends.ErrConflict), "conflict", 5},
		{several(backends.ErrNoReply, false, backends.ErrNoReply, backends.ErrUnsupported), "no_reply", 6},
	} {
		var stdout, stderr bytes.Buffer
		a := newApp(&stdout, &stderr)
		a.settings.json = true
		code := a.reportError(t.Context(), tt.err)
		var got struct {
			Event, Kind, Error string
			Exit               int
		}
		if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
			t.Error(err)
		}
		if code != tt.code || got.Exit != tt.code || got.Kind != tt.kind || got.Event != "error" || stderr.String() != sanitize("goforward: "+got.Error+"\n") {
			t.Errorf("%v: code %d, want %d %s\n%s%s", tt.err, code, tt.code, tt.kind, &stdout, &stderr)
		}
	}
}

func TestExitInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := newApp(&stdout, &stderr).reportError(ctx, context.Canceled); code != exitOther || stderr.String() != "goforward: interrupted\n" {
		t.Errorf("code %d, stderr %q", code, &stderr)
	}
}

// TestInterruptCode checks that the exit code of an interrupted command names the signal.
func TestInterruptCode(t *testing.T) {
	t.Parallel()
	for sig, want := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(signalError{sig})
		var stdout, stderr bytes.Buffer
		if code := newApp(&stdout, &stderr).reportError(ctx, context.Canceled); code != want {
			t.Errorf("%v: exit code %d, want %d", sig, code, want)
		}
	}
}
