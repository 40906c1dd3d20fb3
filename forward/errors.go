package forward

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/hashicorp/go-multierror"

	"github.com/natforward/goforward/backends"
)

var (
	// ErrNoGateway is returned if there is no route to the internet, or if no gateway on it
	// replied.
	ErrNoGateway = errors.New("no gateway that forwards ports")
	// ErrNoMapping is returned if there is no matching mapping to disable or refresh.
	ErrNoMapping = errors.New("no such mapping")
	// ErrClosed is returned after the Forwarder or Mapping was closed. It wraps
	// net.ErrClosed.
	ErrClosed error = closedError{}
)

type closedError struct{}

func (closedError) Error() string { return "closed" }
func (closedError) Unwrap() error { return net.ErrClosed }

// invalid returns an error that wraps backends.ErrInvalid.
func invalid(format string, args ...any) error {
	return fmt.Errorf("forward: %w: %w", backends.ErrInvalid, fmt.Errorf(format, args...))
}

// Error is returned if no backend could do what was requested. It has the error of each
// backend, and its text ends with advice on what to do. It wraps its Kind and every attempt.
type Error struct {
	// Kind is the most severe of the errors of package backends that the attempts wrap.
	Kind error
	// NoGateway reports whether no backend replied, at a gateway that Config does not name.
	// The error then also wraps ErrNoGateway.
	NoGateway bool
	// Attempts has an error for each backend that was tried, in order.
	Attempts []error
}

// kinds lists the kinds of an Error, the most severe first: the one that best explains why
// the request cannot succeed. Each kind has its advice.
var kinds = []struct {
	err    error
	advice string
}{
	{backends.ErrConflict, "choose another external port, or let the gateway choose one"},
	{backends.ErrNotAuthorized, "allow port forwarding for this device in the gateway's settings (some gateways refuse only ports below 1024)"},
	{backends.ErrPrivateWAN, "another NAT is between the gateway and the internet: switch that router to bridge mode, forward the port on it too, or ask the provider for a public address"},
	{backends.ErrNoResources, "remove unused mappings from the gateway, or restart it"},
	{backends.ErrNetworkFailure, "check the gateway's internet connection; if it works, another NAT is between the gateway and the internet"},
	{backends.ErrMalformed, "update the gateway's firmware, or switch on another protocol in its settings"},
	{backends.ErrNoReply, "switch on NAT-PMP, PCP or UPnP in the gateway's settings; behind a VPN or in a container, name the gateway"},
	{backends.ErrUnsupported, "use fewer options, or switch on another protocol in the gateway's settings"},
}

// newError combines attempts into an Error. It returns nil if there are none.
func newError(attempts []error, named bool) error {
	if len(attempts) == 0 {
		return nil
	}
	e := &Error{Kind: backends.ErrUnsupported, Attempts: attempts}
	for _, kind := range kinds {
		if errors.Is(e.all(), kind.err) {
			e.Kind = kind.err
			break
		}
	}
	e.NoGateway = !named && errors.Is(e.Kind, backends.ErrNoReply)
	return e
}

// all returns the attempts as one error.
func (e *Error) all() *multierror.Error {
	return &multierror.Error{Errors: e.Attempts, ErrorFormat: formatAttempts}
}

// Error returns a headline, a line for each attempt and a last line with advice.
func (e *Error) Error() string {
	headline, advice := e.Kind, ""
	if e.NoGateway {
		headline = ErrNoGateway
	}
	for _, kind := range kinds {
		if kind.err == e.Kind { //nolint:errorlint // compares the values themselves
			advice = kind.advice
		}
	}
	return fmt.Sprintf("%v:%v\n  → %s", headline, e.all(), advice)
}

// Unwrap returns the kind, the attempts and, if NoGateway is set, ErrNoGateway.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind}
	if e.NoGateway {
		errs = append(errs, ErrNoGateway)
	}
	return append(errs, e.Attempts...)
}

func formatAttempts(errs []error) string {
	var b strings.Builder
	for _, err := range errs {
		b.WriteString("\n  " + strings.ReplaceAll(err.Error(), "\n", "\n  "))
	}
	return b.String()
}
