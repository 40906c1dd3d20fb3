package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
)

// The pace of an errand that fails, doubling, and how long one that is under way
// at the end may go on.
const (
	retryDelay        = time.Second
	maxRetryDelay = time.Minute
	hookGrace        = 2 * time.Second
)

// errand is what is to be done about each new endpoint: one at a time, again
// until it succeeds, and for the newest only.
type hook struct {
	event   string // its name in JSON
	name    string // for people
	do      func(context.Context, hookEvent) error
	differs  func(a, b backends.Mapping) bool // what it does not matter to is not done again
	report func(hookResult)                    // is told of failures, and of the success that ends them

	pending chan []backends.Mapping
}

// notice is an endpoint to do something about.
type hookEvent struct {
	granted  []backends.Mapping
	previous netip.AddrPort // what was last done about; the zero value at first
}

// outcome is what an attempt came to.
type hookResult struct {
	hook *hook
	event hookEvent
	err    error
	next   time.Time // of the next attempt; zero: there is none
}

// post tells of an endpoint, in place of one that is still to be looked at. It is
// for one goroutine, and does not wait.
func (e *hook) post(granted []backends.Mapping) {
	select {
	case <-e.pending:
	default:
	}
	e.pending <- granted
}

// errSuperseded is what do returns if it has done nothing, because there is another
// endpoint by now, or there will be none.
var errSuperseded = errors.New("superseded")

// errErrandEnds is why what is under way is ended.
var errHookStopped = errors.New("ended, because goforward ends")

// run does the errand until the context ends. What is under way then has a
// moment to finish.
func (e *hook) run(ctx context.Context) {
	lasting, end := withGrace(ctx, hookGrace, errHookStopped)
	defer end(nil)
	var n hookEvent
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop()
	failed := false
	for pause := retryDelay; ; {
		select {
		case <-ctx.Done():
			return
		case granted := <-e.pending:
			if n.granted != nil && !e.differs(n.granted[0], granted[0]) {
				continue
			}
			n.granted, pause = granted, retryDelay
		case <-retry.C:
		}
		if ctx.Err() != nil {
			return
		}
		err := e.do(lasting, n)
		out := hookResult{hook: e, event: n, err: err}
		retry.Stop() // that of an earlier endpoint
		if errors.Is(err, errSuperseded) {
			n.granted = nil // the next endpoint differs from what was done
			continue
		}
		switch {
		case err == nil:
			n.previous = n.granted[0].External
		case ctx.Err() == nil:
			out.next = time.Now().Add(pause)
			retry.Reset(pause)
			pause = min(2*pause, maxRetryDelay)
		}
		if failed || err != nil {
			e.report(out)
		}
		failed = err != nil
	}
}

// outlive returns a context that ends a while after another, with a cause.
func withGrace(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelCauseFunc) {
	lasting, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, func() { end(cause) }) })
	return lasting, func(err error) {
		stop()
		end(err)
	}
}

// sayOutcome tells of an attempt.
func (a *app) printHookResult(o hookResult) {
	now, text := time.Now(), "done at last"
	if o.err != nil {
		text = oneLine(errorText(o.err)) + nextAttemptText(o.next)
	}
	a.messagef("%s %s: %s\n", clockText(now), o.hook.name, text)
	if !a.settings.json {
		return
	}
	r := hookRecord{Event: o.hook.event, Time: jsonTime(now), External: jsonEndpointOf(o.event.granted[0].External)}
	if o.err != nil {
		r.Error, r.Next = errorText(o.err), jsonTime(o.next)
	}
	a.printJSON(r)
}

// outcomeRecord is that in JSON. It has an error where the attempt failed.
type hookRecord struct {
	Event    string   `json:"event"`
	Time     string   `json:"time"`
	External jsonEndpoint `json:"external"`
	Error    string   `json:"error,omitempty"`
	Next     string   `json:"next_try,omitempty"`
}

// execDrain bounds the wait for the output of a command that has ended: what it
// left in the background may hold that open.
const execWaitDelay = time.Second

// execErrand runs a command.
func (a *app) execHook(argv []string, bound time.Duration) *hook {
	return &hook{
		event: "exec", name: "--exec", report: a.printHookResult,
		do: func(ctx context.Context, n hookEvent) error { return a.runCommand(ctx, argv, bound, n) },
		differs: func(a, b backends.Mapping) bool {
			return a.External != b.External || a.Internal.Port() != b.Internal.Port()
		},
		pending: make(chan []backends.Mapping, 1),
	}
}

// exec runs a command to its end, or kills it when that does not come in time.
// On Unix it is the leader of a process group of its own: Ctrl-C on the terminal
// is not for it, and what it started is killed with it.
func (a *app) runCommand(ctx context.Context, argv []string, bound time.Duration, n hookEvent) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("not done within %v, and killed", bound))
	defer cancel()
	out := &lineWriter{emit: func(line string) { a.messagef("--exec: %s\n", line) }}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), n.environment()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = execWaitDelay
	setProcessGroup(cmd)
	err := cmd.Run()
	out.flush()
	switch {
	case errors.Is(err, exec.ErrWaitDelay): // it succeeded, and left something in the background
		return nil
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// environment tells a command of the endpoint.
func (n hookEvent) environment() []string {
	m := n.granted[0]
	protocol, event, previous, ip := m.Protocol.String(), "mapped", "", ""
	if len(n.granted) > 1 {
		protocol = "both"
	}
	if n.previous.Port() != 0 {
		event, previous = "changed", strconv.Itoa(int(n.previous.Port()))
	}
	if addr := m.External.Addr(); addr.IsValid() {
		ip = addr.String()
	}
	return []string{
		"GOFORWARD_EVENT=" + event,
		"GOFORWARD_EXTERNAL_IP=" + ip,
		"GOFORWARD_EXTERNAL_PORT=" + strconv.Itoa(int(m.External.Port())),
		"GOFORWARD_PREVIOUS_PORT=" + previous,
		"GOFORWARD_PROTOCOL=" + protocol,
		"GOFORWARD_INTERNAL_PORT=" + strconv.Itoa(int(m.Internal.Port())),
		"GOFORWARD_BACKEND=" + m.Backend,
		"GOFORWARD_GATEWAY=" + endpointText(m.Gateway),
	}
}
