package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
)

// A hook that fails is retried after retryDelay. The delay doubles with each failure, up to
// maxRetryDelay; watch uses the same delays. When goforward exits, a running hook has hookGrace
// to finish.
const (
	retryDelay    = time.Second
	maxRetryDelay = time.Minute
	hookGrace     = 2 * time.Second
)

// hook runs an action for each new endpoint, one at a time. It repeats a failed action until it
// succeeds or there is a newer endpoint.
type hook struct {
	event   string // name of its event in JSON
	name    string // name for people
	do      func(context.Context, hookEvent) error
	differs func(a, b backends.Mapping) bool // reports whether two endpoints need an action each
	report  func(hookResult)                 // called for each failure, and for the success after failures

	pending chan []backends.Mapping
}

// hookEvent is an endpoint for which a hook runs.
type hookEvent struct {
	granted  []backends.Mapping
	previous netip.AddrPort // endpoint of the last success; the zero value at first
}

// hookResult is the result of one attempt.
type hookResult struct {
	hook  *hook
	event hookEvent
	err   error
	next  time.Time // time of the next attempt; zero: none
}

// post sets the endpoint that the hook handles next. It replaces an endpoint that is still
// pending, and does not block. Only one goroutine may call it.
func (h *hook) post(granted []backends.Mapping) {
	select {
	case <-h.pending:
	default:
	}
	h.pending <- granted
}

// errSuperseded is returned by do if it did nothing, because there is another endpoint, or
// because the session ends.
var errSuperseded = errors.New("superseded")

// errHookStopped is the cause with which the context of a running action ends.
var errHookStopped = errors.New("stopped, because goforward exits")

// run runs the hook until the context ends. A running action then has hookGrace to finish.
func (h *hook) run(ctx context.Context) {
	actionCtx, stop := withGrace(ctx, hookGrace, errHookStopped)
	defer stop(nil)
	var e hookEvent
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	retry.Stop()
	failed := false
	for delay := retryDelay; ; {
		select {
		case <-ctx.Done():
			return
		case granted := <-h.pending:
			if e.granted != nil && !h.differs(e.granted[0], granted[0]) {
				continue
			}
			e.granted, delay = granted, retryDelay
		case <-retry.C:
		}
		if ctx.Err() != nil {
			return
		}
		err := h.do(actionCtx, e)
		result := hookResult{hook: h, event: e, err: err}
		retry.Stop() // the retry for an earlier endpoint
		if errors.Is(err, errSuperseded) {
			e.granted = nil // so that the next endpoint counts as new
			continue
		}
		switch {
		case err == nil:
			e.previous = e.granted[0].External
		case ctx.Err() == nil:
			result.next = time.Now().Add(delay)
			retry.Reset(delay)
			delay = min(2*delay, maxRetryDelay)
		}
		if failed || err != nil {
			h.report(result)
		}
		failed = err != nil
	}
}

// withGrace returns a context that ends with the given cause when d has passed after the end
// of its parent.
func withGrace(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelCauseFunc) {
	extended, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, func() { end(cause) }) })
	return extended, func(err error) {
		stop()
		end(err)
	}
}

// printHookResult prints the result of an attempt.
func (a *app) printHookResult(r hookResult) {
	now, text, printf := time.Now(), "succeeded after a failure", a.messagef
	if r.err != nil {
		text, printf = oneLine(errorText(r.err))+nextAttemptText(r.next), a.failuref
	}
	printf("%s %s: %s\n", clockText(now), r.hook.name, text)
	if !a.settings.json {
		return
	}
	rec := hookRecord{Event: r.hook.event, Time: jsonTime(now), External: jsonEndpointOf(r.event.granted[0].External)}
	if r.err != nil {
		rec.Error, rec.Next = errorText(r.err), jsonTime(r.next)
	}
	a.printJSON(rec)
}

// hookRecord is a hookResult in JSON. It has an error if the attempt failed.
type hookRecord struct {
	Event    string       `json:"event"`
	Time     string       `json:"time"`
	External jsonEndpoint `json:"external"`
	Error    string       `json:"error,omitempty"`
	Next     string       `json:"next_try,omitempty"`
}

// defaultExecTimeout bounds a command of --exec, unless --exec-timeout is set.
const defaultExecTimeout = 30 * time.Second

// registerExec adds the flags --exec and --exec-timeout to a command. usage says when the
// command of --exec runs. Without --exec, *argv stays nil.
func registerExec(cmd *cobra.Command, argv *[]string, timeout *time.Duration, usage string) {
	f := cmd.Flags()
	f.Var(&flagValue[[]string]{target: argv, typeName: "COMMAND", parse: splitCommand}, "exec", usage)
	*timeout = defaultExecTimeout
	f.Var(&flagValue[time.Duration]{target: timeout, typeName: "SECONDS", parse: parseSeconds}, "exec-timeout",
		"how long the command may run: seconds or a duration (default 30s)")
	_ = cmd.RegisterFlagCompletionFunc("exec", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("exec-timeout", cobra.NoFileCompletions)
}

// printShellWarning prints the warning of shellWarning for the command of --exec.
func (a *app) printShellWarning(cmd *cobra.Command) {
	if text := shellWarning(cmd.Flags().Lookup("exec").Value.String()); text != "" {
		a.messagef("%s\n", text)
	}
}

// execWaitDelay bounds the wait for the output of a command that has exited: a background
// process that it started may keep the output open.
const execWaitDelay = time.Second

// execHook returns the hook that runs the command of --exec.
func (a *app) execHook(argv []string, timeout time.Duration) *hook {
	return &hook{
		event: "exec", name: "--exec", report: a.printHookResult,
		do: func(ctx context.Context, e hookEvent) error {
			return a.execute(ctx, argv, timeout, e.environment())
		},
		differs: func(a, b backends.Mapping) bool {
			return a.External != b.External || a.Internal.Port() != b.Internal.Port()
		},
		pending: make(chan []backends.Mapping, 1),
	}
}

// execute runs a command until it exits, or kills it after a timeout. The command gets the
// environment of this process, and the variables in environment. On Unix the command leads a
// process group of its own: Ctrl-C on the terminal does not reach it, and its child processes
// are killed with it.
func (a *app) execute(ctx context.Context, argv []string, timeout time.Duration, environment []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("killed, because it did not finish within %v", timeout))
	defer cancel()
	out := &lineWriter{emit: func(line string) { a.failuref("--exec: %s\n", line) }} // also with --quiet: it is not output of goforward
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(inheritedEnvironment(), environment...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = execWaitDelay
	setProcessGroup(cmd)
	err := cmd.Run()
	out.flush()
	switch {
	case errors.Is(err, exec.ErrWaitDelay): // it succeeded, and left a process in the background
		return nil
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// environment returns the variables that describe the endpoint to a command.
func (e hookEvent) environment() []string {
	event, previous := "mapped", ""
	if e.previous.Port() != 0 {
		event, previous = "changed", strconv.Itoa(int(e.previous.Port()))
	}
	return append(endpointVariables(e.granted, ""), "GOFORWARD_EVENT="+event, "GOFORWARD_PREVIOUS_PORT="+previous)
}

// inheritedEnvironment returns the environment of this process, without the variables of
// endpointVariables: another goforward may have started this process.
func inheritedEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, isOwn := strings.CutPrefix(variable, "GOFORWARD_")
		return isOwn && slices.ContainsFunc(endpointVariables([]backends.Mapping{{}}, ""), func(own string) bool {
			own, _, _ = strings.Cut(strings.TrimPrefix(own, "GOFORWARD_"), "=")
			return strings.HasPrefix(name, own)
		})
	})
}

// endpointVariables returns the variables that describe the endpoint of a mapping to a command.
// Their names end with the suffix.
func endpointVariables(ms []backends.Mapping, suffix string) (env []string) {
	m, protocol := ms[0], protocolsText(ms)
	if len(protocolNamesOf(ms)) > 1 {
		protocol = "both"
	}
	for _, v := range [][2]string{
		{"EXTERNAL_IP", addrText(m.External.Addr())},
		{"EXTERNAL_PORT", strconv.Itoa(int(m.External.Port()))},
		{"INTERNAL_PORT", strconv.Itoa(int(m.Internal.Port()))},
		{"PROTOCOL", protocol},
		{"BACKEND", m.Backend},
		{"GATEWAY", endpointText(m.Gateway)},
	} {
		env = append(env, "GOFORWARD_"+v[0]+suffix+"="+v[1])
	}
	return env
}
