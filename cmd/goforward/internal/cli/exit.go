package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

// The exit codes. Scripts rely on them: never change one.
const (
	exitDone        = 0
	exitOther       = 1
	exitUsage       = 2
	exitNoGateway   = 3
	exitRefused     = 4
	exitConflict    = 5
	exitNoReply     = 6
	exitUnreachable = 7   // verify, probe: the port is not reachable
	exitNotProven   = 8   // verify: nothing wrong was found, but access from the internet is not proven
	exitSignal      = 128 // plus the number of the signal
)

// usageError is an invalid command line. Nothing was sent.
type usageError struct {
	text    string
	command string // the command whose --help explains more; empty: not known
	advice  string // what the user most likely meant; empty: read the help
}

func (e *usageError) Error() string {
	if e.command == "" && e.advice == "" {
		return e.text
	}
	return e.text + arrow + cmp.Or(e.advice, e.command+" --help")
}

func usagef(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// errorKind is a kind of error, with its name in JSON and its exit code.
type errorKind struct {
	err  error
	name string
	code int
}

// errorKinds are in order of precedence. An error can have several kinds, for example if each
// backend fails for another reason. The kind that best explains why mapping cannot work is
// first, as in forward.Error.
var errorKinds = []errorKind{
	{forward.ErrNoGateway, "no_gateway", exitNoGateway},
	{backends.ErrConflict, "conflict", exitConflict},
	{backends.ErrNotAuthorized, "not_authorized", exitRefused},
	{backends.ErrPrivateWAN, "private_wan", exitRefused},
	{backends.ErrNoResources, "no_resources", exitRefused},
	{backends.ErrNetworkFailure, "network_failure", exitRefused},
	{backends.ErrMalformed, "malformed", exitOther},
	{backends.ErrNoReply, "no_reply", exitNoReply},
	{backends.ErrInvalid, "usage", exitUsage},
	{backends.ErrUnsupported, "unsupported", exitOther},
}

// errNotUnmapped is the error of map --hold if its mapping could not be deleted at the end. It
// takes precedence over the reason, because the mapping itself was granted.
var errNotUnmapped = errors.New("not unmapped")

// errInterrupted is the error of a command that a signal interrupted.
var errInterrupted = errors.New("interrupted")

// kindInterrupted is the name of the kind of errInterrupted. Its exit code depends on the
// signal.
const kindInterrupted = "interrupted"

// classify returns the kind of an error.
func classify(err error) errorKind {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return errorKind{err, "usage", exitUsage}
	case errors.Is(err, errInterrupted):
		return errorKind{err, kindInterrupted, exitOther}
	case errors.Is(err, errNotUnmapped):
		return errorKind{err, "not_unmapped", exitOther}
	}
	for _, k := range errorKinds {
		if errors.Is(err, k.err) && (k.code != exitUsage || !wasSent(err)) {
			return k
		}
	}
	return errorKind{err, "other", exitOther}
}

// sentError is an error after requests for the command were sent.
type sentError struct{ error }

func (e sentError) Unwrap() error { return e.error }

// wasSent reports whether a request was sent before an error. Then the error is no usage error,
// even if it wraps ErrInvalid, as some faults of devices do.
func wasSent(err error) bool {
	var fault *upnp.Fault
	return errors.As(err, &fault) || errors.As(err, &sentError{})
}

// messages returns the text of an error, or the text for each group of several mappings.
func (a *app) messages(err error) []string {
	failures, several := err.(mapErrors) //nolint:errorlint // a wrapped error has a text of its own
	if !several {
		return []string{a.errorText(err)}
	}
	var out []string
	for _, group := range failures.groups() {
		out = append(out, a.errorText(group))
	}
	return out
}

// reportError prints an error, if there is one, and returns the exit code.
func (a *app) reportError(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	if verdict := verdictError(0); errors.As(err, &verdict) {
		return int(verdict)
	}
	var ended *commandEnded
	if errors.As(err, &ended) {
		return cmp.Or(ended.code, a.reportError(ctx, ended.err))
	}
	if ctx.Err() != nil && !errors.Is(err, errNotUnmapped) && !errors.Is(err, errInterrupted) {
		err = errInterrupted
	}
	k := classify(err)
	if k.name == kindInterrupted {
		k.code = interruptCode(ctx)
	}
	text := a.errorText(err)
	for _, message := range a.messages(err) {
		a.failuref("goforward: %s\n", message)
	}
	if a.settings.json {
		a.printJSON(errorRecord{"error", k.name, text, k.code})
	}
	return k.code
}

// errorRecord is the last object of a command that failed.
type errorRecord struct {
	Event string `json:"event"`
	Kind  string `json:"kind"`
	Error string `json:"error"`
	Exit  int    `json:"exit"`
}
