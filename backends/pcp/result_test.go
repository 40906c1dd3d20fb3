package pcp_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// TestResults checks the result codes of RFC 6887, section 7.4, RFC 7652 and RFC
// 7843, and the errors of package backends that they wrap.
func TestResults(t *testing.T) {
	t.Parallel()
	kinds := []error{
		backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed,
		backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrNotAuthorized,
		backends.ErrConflict, backends.ErrPrivateWAN,
	}
	for _, tt := range []struct {
		code   pcp.ResultCode
		number uint8
		text   string
		kind   error
	}{
		{pcp.Success, 0, "success", nil},
		{pcp.UnsupportedVersion, 1, "unsupported version", backends.ErrUnsupported},
		{pcp.NotAuthorized, 2, "not authorized or refused", backends.ErrNotAuthorized},
		{pcp.MalformedRequest, 3, "malformed request", backends.ErrMalformed},
		{pcp.UnsupportedOpcode, 4, "unsupported opcode", backends.ErrUnsupported},
		{pcp.UnsupportedOption, 5, "unsupported option", backends.ErrUnsupported},
		{pcp.MalformedOption, 6, "malformed option", backends.ErrMalformed},
		{pcp.NetworkFailure, 7, "network failure", backends.ErrNetworkFailure},
		{pcp.NoResources, 8, "out of resources", backends.ErrNoResources},
		{pcp.UnsupportedProtocol, 9, "unsupported protocol", backends.ErrUnsupported},
		{pcp.UserExceededQuota, 10, "quota exceeded", backends.ErrNoResources},
		{pcp.CannotProvideExternal, 11, "cannot provide the external port", backends.ErrConflict},
		{
			pcp.AddressMismatch, 12, "address mismatch: another NAT is between this host and the server",
			backends.ErrPrivateWAN,
		},
		{pcp.ExcessiveRemotePeers, 13, "too many filters", backends.ErrNoResources},
		{pcp.Initiation, 14, "initiation", backends.ErrMalformed},
		{pcp.AuthenticationRequired, 15, "authentication required", backends.ErrNotAuthorized},
		{pcp.AuthenticationFailed, 16, "authentication failed", backends.ErrMalformed},
		{pcp.AuthenticationSucceeded, 17, "authentication succeeded", backends.ErrMalformed},
		{pcp.AuthorizationFailed, 18, "authorization failed", backends.ErrNotAuthorized},
		{pcp.SessionTerminated, 19, "session terminated", backends.ErrMalformed},
		{pcp.UnknownSessionID, 20, "unknown session", backends.ErrMalformed},
		{pcp.DowngradeAttackDetected, 21, "downgrade attack detected", backends.ErrMalformed},
		{pcp.AuthenticationRequest, 22, "authentication request", backends.ErrMalformed},
		{pcp.AuthenticationReply, 23, "authentication reply", backends.ErrMalformed},
		{pcp.ThirdPartyIDUnknown, 24, "third party id unknown", backends.ErrUnsupported},
		{pcp.ThirdPartyMissingOption, 25, "third party option missing", backends.ErrUnsupported},
		{pcp.UnsupportedThirdPartyIDLength, 26, "unsupported third party id length", backends.ErrUnsupported},
		{27, 27, "undefined result", backends.ErrMalformed},
		{255, 255, "undefined result", backends.ErrMalformed},
	} {
		if uint8(tt.code) != tt.number || tt.code.String() != tt.text {
			t.Errorf("code %d is %q, want %d, %q", uint8(tt.code), tt.code, tt.number, tt.text)
		}
		err := fmt.Errorf("wrapped: %w", &pcp.ResultError{Op: pcp.OpMap, Code: tt.code})
		requestErr := error(&pcp.RequestError{Code: tt.code, Reason: "why"})
		for _, kind := range kinds {
			want := errors.Is(tt.kind, kind)
			if errors.Is(err, kind) != want || errors.Is(requestErr, kind) != want {
				t.Errorf("code %d is %v: %v, %v; want %v", tt.code, kind, errors.Is(err, kind), errors.Is(requestErr, kind), want)
			}
		}
		want := fmt.Sprintf("wrapped: pcp: map: %s (result %d)", tt.text, tt.number)
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
		if want := "pcp: " + tt.text + ": why"; requestErr.Error() != want {
			t.Errorf("got %q, want %q", requestErr, want)
		}
	}
}

func TestErrorTexts(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"pcp: peer: out of resources (result 8), for the next 30s":    &pcp.ResultError{Op: pcp.OpPeer, Code: 8, Lifetime: 30 * time.Second},
		"pcp: map: not authorized or refused (result 2), permanently": &pcp.ResultError{Op: pcp.OpMap, Code: 2, Lifetime: backends.Forever},
		"pcp: the gateway supports NAT-PMP, not PCP":                  &pcp.VersionError{Lifetime: time.Hour},
		"pcp: the gateway supports version 1, not PCP version 2":      &pcp.VersionError{Version: 1},
		"pcp: unsupported option: option 100":                         parseErr(vector("unknown option")),
		"pcp: unsupported version: version 3":                         parseErr(vector("version 3")),
		"pcp: malformed option: option extends past the end":          parseErr(vector("option past the end")),
		"pcp: malformed request: protocol 0 with an internal port":    parseErr(vector("protocol 0 with a port")),
		"pcp: malformed reply: map response instead of a request":     parseErr(vector("deleted")),
		"pcp: unsupported opcode: announce instead of map":            parseErr(vector("announce request")),
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

func parseErr(b []byte) error {
	_, err := pcp.ParseMapRequest(b)
	return err
}
