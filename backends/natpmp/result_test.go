package natpmp_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// TestResults checks the result codes of RFC 6886, section 3.5, and the errors of
// package backends that they wrap.
func TestResults(t *testing.T) {
	t.Parallel()
	kinds := []error{
		backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed,
		backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrNotAuthorized,
		backends.ErrConflict, backends.ErrPrivateWAN,
	}
	for _, tt := range []struct {
		code natpmp.ResultCode
		text string
		kind error
	}{
		{natpmp.Success, "success", nil},
		{natpmp.UnsupportedVersion, "unsupported version", backends.ErrUnsupported},
		{natpmp.NotAuthorized, "not authorized or refused", backends.ErrNotAuthorized},
		{natpmp.NetworkFailure, "network failure", backends.ErrNetworkFailure},
		{natpmp.OutOfResources, "out of resources", backends.ErrNoResources},
		{natpmp.UnsupportedOpcode, "unsupported opcode", backends.ErrUnsupported},
		{6, "undefined result", backends.ErrMalformed},
		{0xffff, "undefined result", backends.ErrMalformed},
	} {
		if got := tt.code.String(); got != tt.text {
			t.Errorf("code %d is %q, want %q", tt.code, got, tt.text)
		}
		err := fmt.Errorf("wrapped: %w", &natpmp.ResultError{Op: natpmp.OpMapTCP, Code: tt.code})
		for _, kind := range kinds {
			if got, want := errors.Is(err, kind), errors.Is(tt.kind, kind); got != want {
				t.Errorf("code %d is %v: %v, want %v", tt.code, kind, got, want)
			}
		}
		want := fmt.Sprintf("wrapped: natpmp: map tcp: %s (result %d)", tt.text, uint16(tt.code))
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
	for code, want := range map[natpmp.ResultCode]uint16{
		natpmp.Success: 0, natpmp.UnsupportedVersion: 1, natpmp.NotAuthorized: 2,
		natpmp.NetworkFailure: 3, natpmp.OutOfResources: 4, natpmp.UnsupportedOpcode: 5,
	} {
		if uint16(code) != want {
			t.Errorf("%v is %d, want %d", code, uint16(code), want)
		}
	}
}
