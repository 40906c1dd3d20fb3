package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
)

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
