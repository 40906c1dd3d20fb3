package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// maxQueuedEvents is the number of events that can wait for the command of watch --exec.
const maxQueuedEvents = 64

// execQueue runs the command of watch --exec for each event: in order, and one at a time. A
// command that fails does not run again for the same event.
type execQueue struct {
	do func(context.Context, execEvent) error
	// report is called for each failure, for the first success after a failure, and for each
	// event without a run. Calls can overlap.
	report  func(execEvent, error)
	pending chan execEvent
}

// execEvent is an event for which the command runs.
type execEvent struct {
	name        string // as in JSON
	environment []string
}

// The errors of an event for which the command does not run.
var (
	errQueueFull   = fmt.Errorf("not run, because %d later events wait for the command", maxQueuedEvents)
	errNotRunAtEnd = errors.New("not run, because goforward exits")
)

// newExecQueue returns the queue that runs a command.
func (a *app) newExecQueue(argv []string, timeout time.Duration) *execQueue {
	return &execQueue{
		do: func(ctx context.Context, e execEvent) error {
			return a.execute(ctx, argv, timeout, e.environment)
		},
		report:  a.printExecResult,
		pending: make(chan execEvent, maxQueuedEvents),
	}
}

// post adds an event. If the queue is full, post removes the oldest event. It does not block.
// Only one goroutine may call it.
func (q *execQueue) post(e execEvent) {
	select {
	case q.pending <- e:
		return
	default:
	}
	select {
	case oldest := <-q.pending:
		q.report(oldest, errQueueFull)
	default: // run has just taken it
	}
	q.pending <- e
}

// run runs the command until the context ends. A running command then has hookGrace to finish.
func (q *execQueue) run(ctx context.Context) {
	commandCtx, stop := withGrace(ctx, hookGrace, errHookStopped)
	defer stop(nil)
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-q.pending:
			if ctx.Err() != nil {
				q.report(e, errNotRunAtEnd)
				return
			}
			err := q.do(commandCtx, e)
			if failed || err != nil {
				q.report(e, err)
			}
			failed = err != nil
		}
	}
}

// reportRest reports the events that still wait when run has returned.
func (q *execQueue) reportRest() {
	for {
		select {
		case e := <-q.pending:
			q.report(e, errNotRunAtEnd)
		default:
			return
		}
	}
}

// execRecord is the result of a run of the command of watch --exec in JSON. It has an error if
// the command failed or did not run.
type execRecord struct {
	Event string `json:"event"`
	Time  string `json:"time"`
	For   string `json:"for"` // name of the event for which the command ran
	Error string `json:"error,omitempty"`
}

// printExecResult prints the result of a run.
func (a *app) printExecResult(e execEvent, err error) {
	now, text, rec, printf := time.Now(), "succeeded after a failure", execRecord{Event: "exec", For: e.name}, a.messagef
	if err != nil {
		rec.Error, printf = errorText(err), a.failuref
		text = oneLine(rec.Error)
	}
	printf("%s --exec: %s: %s\n", clockText(now), eventText(e.name), text)
	if a.settings.json {
		rec.Time = jsonTime(now)
		a.printJSON(rec)
	}
}

// environment returns the variables that describe an event to a command. The route, the
// protocols and the external address are those that were printed last.
func (w *watchSession) environment(r watchRecord) []string {
	return []string{
		"GOFORWARD_EVENT=" + r.Event,
		"GOFORWARD_GATEWAY=" + r.Gateway,
		"GOFORWARD_EXTERNAL_IP=" + addrText(w.external),
		"GOFORWARD_PREVIOUS_IP=" + r.Previous,
		"GOFORWARD_BACKEND=" + r.Backend,
		"GOFORWARD_PROTOCOLS=" + strings.Join(w.protocols, ","),
		"GOFORWARD_REASON=" + sanitize(oneLine(r.Reason)), // a NUL byte would prevent the start
		"GOFORWARD_INTERFACE=" + w.route.iface,
		"GOFORWARD_LOCAL_IP=" + addrText(w.route.local),
	}
}
