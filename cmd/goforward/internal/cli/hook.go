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
	errandPause        = time.Second
	longestErrandPause = time.Minute
	errandGrace        = 2 * time.Second
)

// errand is what is to be done about each new endpoint: one at a time, again
// until it succeeds, and for the newest only.
type errand struct {
	event   string // its name in JSON
	name    string // for people
	do      func(context.Context, notice) error
	differ  func(a, b backends.Mapping) bool // what it does not matter to is not done again
	outcome func(outcome)                    // is told of failures, and of the success that ends them

	inbox chan []backends.Mapping
}

// notice is an endpoint to do something about.
type notice struct {
	granted  []backends.Mapping
	previous netip.AddrPort // what was last done about; the zero value at first
}

// outcome is what an attempt came to.
type outcome struct {
	errand *errand
	notice notice
	err    error
	next   time.Time // of the next attempt; zero: there is none
}

// post tells of an endpoint, in place of one that is still to be looked at. It is
// for one goroutine, and does not wait.
func (e *errand) post(granted []backends.Mapping) {
	select {
	case <-e.inbox:
	default:
	}
	e.inbox <- granted
}

// errSuperseded is what do returns if it has done nothing, because there is another
// endpoint by now, or there will be none.
var errSuperseded = errors.New("superseded")

// errErrandEnds is why what is under way is ended.
var errErrandEnds = errors.New("ended, because goforward ends")

// run does the errand until the context ends. What is under way then has a
// moment to finish.
func (e *errand) run(ctx context.Context) {
	lasting, end := outlive(ctx, errandGrace, errErrandEnds)
	defer end(nil)
	var n notice
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop()
	failed := false
	for pause := errandPause; ; {
		select {
		case <-ctx.Done():
			return
		case granted := <-e.inbox:
			if n.granted != nil && !e.differ(n.granted[0], granted[0]) {
				continue
			}
			n.granted, pause = granted, errandPause
		case <-retry.C:
		}
		if ctx.Err() != nil {
			return
		}
		err := e.do(lasting, n)
		out := outcome{errand: e, notice: n, err: err}
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
			pause = min(2*pause, longestErrandPause)
		}
		if failed || err != nil {
			e.outcome(out)
		}
		failed = err != nil
	}
}

// outlive returns a context that ends a while after another, with a cause.
func outlive(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelCauseFunc) {
	lasting, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, func() { end(cause) }) })
	return lasting, func(err error) {
		stop()
		end(err)
	}
}

// sayOutcome tells of an attempt.
func (a *app) sayOutcome(o outcome) {
	now, text := time.Now(), "done at last"
	if o.err != nil {
		text = oneLine(errorText(o.err)) + nextText(o.next)
	}
	a.sayf("%s %s: %s\n", clock(now), o.errand.name, text)
	if !a.settings.json {
		return
	}
	r := outcomeRecord{Event: o.errand.event, Time: stamp(now), External: endpointOf(o.notice.granted[0].External)}
	if o.err != nil {
		r.Error, r.Next = errorText(o.err), stamp(o.next)
	}
	a.object(r)
}

// outcomeRecord is that in JSON. It has an error where the attempt failed.
type outcomeRecord struct {
	Event    string   `json:"event"`
	Time     string   `json:"time"`
	External endpoint `json:"external"`
	Error    string   `json:"error,omitempty"`
	Next     string   `json:"next_try,omitempty"`
}

// execDrain bounds the wait for the output of a command that has ended: what it
// left in the background may hold that open.
const execDrain = time.Second

// execErrand runs a command.
func (a *app) execErrand(argv []string, bound time.Duration) *errand {
	return &errand{
		event: "exec", name: "--exec", outcome: a.sayOutcome,
		do: func(ctx context.Context, n notice) error { return a.exec(ctx, argv, bound, n) },
		differ: func(a, b backends.Mapping) bool {
			return a.External != b.External || a.Internal.Port() != b.Internal.Port()
		},
		inbox: make(chan []backends.Mapping, 1),
	}
}

// exec runs a command to its end, or kills it when that does not come in time.
// On Unix it is the leader of a process group of its own: Ctrl-C on the terminal
// is not for it, and what it started is killed with it.
func (a *app) exec(ctx context.Context, argv []string, bound time.Duration, n notice) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("not done within %v, and killed", bound))
	defer cancel()
	out := &lineWriter{say: func(line string) { a.sayf("--exec: %s\n", line) }}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), n.environment()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = execDrain
	group(cmd)
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
func (n notice) environment() []string {
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
