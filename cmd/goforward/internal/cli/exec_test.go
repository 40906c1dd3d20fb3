package cli

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

var execNotice = notice{granted: []backends.Mapping{{
	Backend: "natpmp", Gateway: netip.MustParseAddrPort("127.0.0.1:5351"), Protocol: backends.UDP,
	Internal: netip.MustParseAddrPort("127.0.0.1:8080"), External: netip.MustParseAddrPort("45.45.45.1:80"),
}}}

// runHook runs one, and returns what it said.
func runHook(ctx context.Context, argv []string, bound time.Duration, n notice) (string, error) {
	var stdout, stderr bytes.Buffer
	err := newApp(&stdout, &stderr).exec(ctx, argv, bound, n)
	return stdout.String() + stderr.String(), err
}

const patient = 20 * time.Second

func TestEnvironment(t *testing.T) {
	t.Parallel()
	first := []string{
		"GOFORWARD_EVENT=mapped", "GOFORWARD_EXTERNAL_IP=45.45.45.1", "GOFORWARD_EXTERNAL_PORT=80", "GOFORWARD_PREVIOUS_PORT=",
		"GOFORWARD_PROTOCOL=udp", "GOFORWARD_INTERNAL_PORT=8080", "GOFORWARD_BACKEND=natpmp", "GOFORWARD_GATEWAY=127.0.0.1:5351",
	}
	if got := execNotice.environment(); !slices.Equal(got, first) {
		t.Errorf("%q", got)
	}
	m := execNotice.granted[0]
	m.External = netip.AddrPortFrom(netip.Addr{}, 81)
	n := notice{granted: []backends.Mapping{m, m}, previous: netip.AddrPortFrom(netip.Addr{}, 80)}
	got := strings.Join(n.environment(), " ")
	for _, want := range []string{"EVENT=changed ", "EXTERNAL_IP= ", "EXTERNAL_PORT=81 ", "PREVIOUS_PORT=80 ", "PROTOCOL=both "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q: want %q", got, want)
		}
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	got, err := runHook(t.Context(), hook(t, "tell", "a b", ""), patient, execNotice)
	want := execNotice.environment()
	slices.Sort(want)
	text := "--exec: " + strings.Join(append(want, `args ["a b" ""]`), "\n--exec: ") + "\n"
	lines := strings.SplitAfter(got, "\n")
	if len(lines) > 9 {
		slices.Sort(lines[:8])
	}
	if err != nil || strings.Join(lines, "") != text {
		t.Errorf("%v:\n%swant\n%s", err, got, text)
	}
}

func TestExecFails(t *testing.T) {
	t.Parallel()
	got, err := runHook(t.Context(), hook(t, "fail"), patient, execNotice)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("%v", err)
	}
	if got != "--exec: out\n--exec: err\\x1b[2J\n" {
		t.Errorf("%q", got)
	}
	if _, err := runHook(t.Context(), []string{"no-such-command-of-goforward"}, patient, execNotice); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("not there: %v", err)
	}
	if _, err := runHook(t.Context(), []string{t.TempDir()}, patient, execNotice); !errors.Is(err, fs.ErrPermission) && runtime.GOOS != "windows" {
		t.Errorf("a directory: %v", err)
	}
}

// All that was started is killed, at the bound and at the end.
func TestExecKilled(t *testing.T) {
	t.Parallel()
	verbs := []string{"hang", "group"}
	if runtime.GOOS == "windows" {
		verbs = verbs[:1] // it has no process groups
	}
	for _, verb := range verbs {
		h := startHangs(t)
		ctx, end := context.WithCancelCause(t.Context())
		go func() {
			<-h.came
			end(errErrandEnds)
		}()
		if _, err := runHook(ctx, hook(t, verb, h.addr), patient, execNotice); !errors.Is(err, errErrandEnds) {
			t.Errorf("%s: %v", verb, err)
		}
		<-h.gone
	}
	h := startHangs(t)
	_, err := runHook(t.Context(), hook(t, "hang", h.addr), time.Millisecond, execNotice)
	if err == nil || err.Error() != "not done within 1ms, and killed" {
		t.Errorf("%v", err)
	}
}

// A command may leave something behind: it is not waited for.
func TestExecLeaves(t *testing.T) {
	t.Parallel()
	h := startHangs(t)
	got, err := runHook(t.Context(), hook(t, "leave", h.addr), patient, execNotice)
	if err != nil {
		t.Errorf("%v: %s", err, got)
	}
	<-h.came
	select {
	case <-h.gone:
		t.Error("what it left was killed")
	default:
	}
}
