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
	ErrNoMapping = backends.ErrNoMapping
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
	// Advice is the last line of the text: the step that most likely helps. It depends on the
	// attempts, the options and Config, so programs must not compare it.
	Advice string
}

// kinds lists the kinds of an Error, the most severe first: the one that best explains why
// the request cannot succeed.
var kinds = []error{
	backends.ErrConflict,
	backends.ErrNotAuthorized,
	backends.ErrPrivateWAN,
	backends.ErrNoResources,
	backends.ErrNetworkFailure,
	backends.ErrMalformed,
	backends.ErrNoReply,
	backends.ErrUnsupported,
}

// newError combines the attempts of a situation into an Error. It returns nil if there are
// none.
func newError(s situation) error {
	if len(s.attempts) == 0 {
		return nil
	}
	e := &Error{Attempts: s.attempts}
	s.kind = backends.ErrUnsupported
	for _, kind := range kinds {
		if errors.Is(e.all(), kind) {
			s.kind = kind
			break
		}
	}
	e.Kind, e.Advice = s.kind, adviceFor(&s)
	e.NoGateway = !s.replied && !s.config.Gateway.IsValid() && errors.Is(e.Kind, backends.ErrNoReply)
	return e
}

// all returns the attempts as one error.
func (e *Error) all() *multierror.Error {
	return &multierror.Error{Errors: e.Attempts, ErrorFormat: formatAttempts}
}

// Error returns a headline, a line for each attempt and a last line with the advice.
func (e *Error) Error() string {
	headline, advice := e.Kind, ""
	if e.NoGateway {
		headline = ErrNoGateway
	}
	if e.Advice != "" {
		advice = "\n  → " + e.Advice
	}
	return fmt.Sprintf("%v:%v%s", headline, e.all(), advice)
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
