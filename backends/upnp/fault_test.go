package upnp

import (
	"errors"
	"fmt"
	"testing"

	"github.com/natforward/goforward/backends"
)

// TestFaultKinds checks that each code has one error kind, and that its text has
// the number and the name.
func TestFaultKinds(t *testing.T) {
	for kind, codes := range map[error][]FaultCode{
		backends.ErrUnsupported: {
			401, 402, 600, 601, 602, 605, 702, 705, 706, 707, 708, 709, 715, 716, 724, 725, 726, 727, 732, 733,
		},
		backends.ErrNoResources:   {501, 603, 701, 728, 734, 799, 800, 899, 999, -1, -911},
		backends.ErrNotAuthorized: {604, 606, 703, 731},
		backends.ErrConflict:      {718, 729},
		backends.ErrInvalid:       {704, 713, 714, 730},
		backends.ErrMalformed:     {0},
	} {
		for _, code := range codes {
			err := fmt.Errorf("x: %w", &Fault{Action: "AddPortMapping", Code: code, Status: 500})
			if !errors.Is(err, kind) {
				t.Errorf("%v is not %q", err, kind)
			}
			want := fmt.Sprintf("x: upnp: AddPortMapping: %v (error %d)", code, int(code))
			if err.Error() != want || code.String() == "" {
				t.Errorf("%q, want %q", err, want)
			}
		}
	}
	for code, want := range map[FaultCode]bool{0: true, -1: true, 734: true, 899: true, 402: false, 501: false, 718: false} {
		if code.isUnknown() != want {
			t.Errorf("code %d: isUnknown returned %v", code, !want)
		}
	}
	f := &Fault{Action: "A", Code: 725, Description: `Only "x"`}
	if got, want := f.Error(), `upnp: A: only permanent leases supported (error 725: "Only \"x\"")`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHTTPError(t *testing.T) {
	for status, kind := range map[int]error{
		404: backends.ErrMalformed, 500: backends.ErrMalformed, 599: backends.ErrMalformed,
		401: backends.ErrNotAuthorized, 403: backends.ErrNotAuthorized,
	} {
		if err := error(&HTTPError{Status: status}); !errors.Is(err, kind) || err.Error() == "" {
			t.Errorf("%v is not %q", err, kind)
		}
	}
	if Moved(nil) || Moved(&Fault{Code: 401}) || !Moved(fmt.Errorf("x: %w", &HTTPError{Status: 404})) {
		t.Error("moved")
	}
}
