package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// hookTest is a hook that logs its attempts and their results.
type hookTest struct {
	hook
	start time.Time
	mu    sync.Mutex
	log   []string
	end   context.CancelFunc
	ended chan struct{}
}

// startTestHook starts a hook with the given action. It must be called in a synctest bubble.
func startTestHook(do func(ctx context.Context, port uint16) error) *hookTest {
	c := &hookTest{start: time.Now(), ended: make(chan struct{})}
	c.hook = hook{
		do: func(ctx context.Context, e hookEvent) error {
			port := e.granted[0].External.Port()
			c.logf("%d after %d", port, e.previous.Port())
			return do(ctx, port)
		},
		differs: func(a, b backends.Mapping) bool { return a.External != b.External },
		report:  func(r hookResult) { c.logf("%v, next %v", r.err, r.next.Sub(c.start)) },
		pending: make(chan []backends.Mapping, 1),
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	go func() {
		defer close(c.ended)
		c.run(ctx)
	}()
	return c
}

func (c *hookTest) logf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf("%v: ", time.Since(c.start))+fmt.Sprintf(format, args...))
}

func (c *hookTest) postPort(port uint16) {
	c.post([]backends.Mapping{{External: netip.AddrPortFrom(netip.Addr{}, port)}})
}

// want compares the log since the last call.
func (c *hookTest) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !reflect.DeepEqual(c.log, want) {
		t.Errorf("got\n%q, want\n%q", c.log, want)
	}
	c.log = nil
}

func (c *hookTest) finish() {
	c.end()
	<-c.ended
}

var errHookFailed = errors.New("no")

// never is the log value of a result without a next attempt.
func (c *hookTest) never() time.Duration { return time.Time{}.Sub(c.start) }

func TestHook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startTestHook(func(context.Context, uint16) error { return nil })
		c.postPort(1)
		c.want(t, "0s: 1 after 0")
		c.postPort(1)
		c.want(t)
		c.postPort(2)
		c.want(t, "0s: 2 after 1")
		c.finish()
		c.want(t)
	})
}

func TestHookRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var succeeds atomic.Bool
		c := startTestHook(func(_ context.Context, port uint16) error {
			if !succeeds.Load() && port != 3 {
				return errHookFailed
			}
			return nil
		})
		c.postPort(1)
		c.want(t, "0s: 1 after 0", "0s: no, next 1s")
		for _, tt := range []struct{ at, next string }{
			{"1s", "3s"}, {"3s", "7s"}, {"7s", "15s"}, {"15s", "31s"}, {"31s", "1m3s"}, {"1m3s", "2m3s"}, {"2m3s", "3m3s"}, {"3m3s", "4m3s"},
		} {
			at, err := time.ParseDuration(tt.at)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Until(c.start.Add(at)))
			c.want(t, tt.at+": 1 after 0", tt.at+": no, next "+tt.next)
		}
		c.postPort(1) // the same endpoint is already being retried
		c.want(t)
		c.postPort(2) // a new endpoint starts with the shortest delay
		c.want(t, "3m3s: 2 after 0", "3m3s: no, next 3m4s")
		c.postPort(3)
		c.want(t, "3m3s: 3 after 0", "3m3s: <nil>, next "+c.never().String())
		time.Sleep(time.Hour)
		c.want(t) // no retry of an earlier endpoint remains
		c.postPort(4)
		c.want(t, "1h3m3s: 4 after 3", "1h3m3s: no, next 1h3m4s")
		c.postPort(3) // the failed attempt may have undone part of the last success
		c.want(t, "1h3m3s: 3 after 3", "1h3m3s: <nil>, next "+c.never().String())
		c.postPort(4)
		c.want(t, "1h3m3s: 4 after 3", "1h3m3s: no, next 1h3m4s")
		succeeds.Store(true)
		time.Sleep(time.Second)
		c.want(t, "1h3m4s: 4 after 3", "1h3m4s: <nil>, next "+c.never().String())
		c.finish()
	})
}

// TestHookRunsNewestOnly checks that endpoints that arrive during an attempt wait, and that
// only the newest one is handled.
func TestHookRunsNewestOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan error)
		c := startTestHook(func(context.Context, uint16) error { return <-finish })
		c.postPort(1)
		c.want(t, "0s: 1 after 0")
		c.postPort(2)
		c.postPort(3)
		c.want(t)
		finish <- nil
		c.want(t, "0s: 3 after 1")
		c.postPort(4)
		c.postPort(3) // back to the endpoint of the running attempt
		finish <- nil
		c.want(t)
		c.postPort(5)
		c.want(t, "0s: 5 after 3")
		c.postPort(6)
		finish <- errHookFailed // the result for 5, which is not retried
		c.want(t, "0s: no, next 1s", "0s: 6 after 3")
		finish <- nil
		time.Sleep(time.Minute)
		c.want(t, "0s: <nil>, next "+c.never().String())
		c.finish()
	})
}

// TestHookStops checks that at the end a running attempt has hookGrace to finish, and that a
// pending endpoint is not handled.
func TestHookStops(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		takes time.Duration
		want  func(*hookTest) []string
	}{
		"in time": {time.Second, func(*hookTest) []string { return nil }},
		"too long": {time.Hour, func(c *hookTest) []string {
			return []string{"2s: " + errHookStopped.Error() + ", next " + c.never().String()}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := startTestHook(func(ctx context.Context, _ uint16) error {
					select {
					case <-time.After(tt.takes):
						return nil
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				})
				c.postPort(1)
				c.want(t, "0s: 1 after 0")
				c.postPort(2)
				c.finish()
				if took := time.Since(c.start); took != min(tt.takes, hookGrace) {
					t.Errorf("the hook ran for %v after the end", took)
				}
				c.want(t, tt.want(c)...)
			})
		})
	}
}

// TestHookSuperseded checks that an endpoint whose attempt was superseded does not count as
// handled: the next endpoint is handled even if it is the same.
func TestHookSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done []uint16
		superseded := true
		e := &hook{
			do: func(_ context.Context, e hookEvent) error {
				if superseded {
					superseded = false
					return errSuperseded
				}
				done = append(done, e.granted[0].External.Port())
				return nil
			},
			differs: func(a, b backends.Mapping) bool { return a.External != b.External },
			report:  func(r hookResult) { t.Errorf("a result was reported: %v", r.err) },
			pending: make(chan []backends.Mapping, 1),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			e.run(ctx)
			close(ended)
		}()
		for range 3 {
			e.post([]backends.Mapping{{External: netip.MustParseAddrPort("45.45.45.1:80")}})
			synctest.Wait()
		}
		cancel()
		<-ended
		if !slices.Equal(done, []uint16{80}) {
			t.Errorf("handled ports %v, want port 80 once", done)
		}
	})
}

var testEvent = hookEvent{granted: []backends.Mapping{{
	Backend: "natpmp", Gateway: netip.MustParseAddrPort("127.0.0.1:5351"), Protocol: backends.UDP,
	Internal: netip.MustParseAddrPort("127.0.0.1:8080"), External: netip.MustParseAddrPort("45.45.45.1:80"),
}}}

// runTestCommand runs a command like --exec for testEvent, and returns its output.
func runTestCommand(ctx context.Context, argv []string, timeout time.Duration) (string, error) {
	var stdout, stderr bytes.Buffer
	err := newApp(&stdout, &stderr).execute(ctx, argv, timeout, testEvent.environment())
	return stdout.String() + stderr.String(), err
}

const testTimeout = 20 * time.Second

func TestHookEnvironment(t *testing.T) {
	t.Parallel()
	first := []string{
		"GOFORWARD_EXTERNAL_IP=45.45.45.1", "GOFORWARD_EXTERNAL_PORT=80", "GOFORWARD_INTERNAL_PORT=8080", "GOFORWARD_PROTOCOL=udp",
		"GOFORWARD_BACKEND=natpmp", "GOFORWARD_GATEWAY=127.0.0.1:5351", "GOFORWARD_EVENT=mapped", "GOFORWARD_PREVIOUS_PORT=",
	}
	if got := testEvent.environment(); !slices.Equal(got, first) {
		t.Errorf("unexpected output or environment: %q", got)
	}
	m := testEvent.granted[0]
	m.External = netip.AddrPortFrom(netip.Addr{}, 81)
	tcp, next := m, m
	tcp.Protocol = backends.TCP
	next.External = netip.AddrPortFrom(netip.Addr{}, 82)
	if got := (hookEvent{granted: []backends.Mapping{m, next}}).environment(); !slices.Contains(got, "GOFORWARD_PROTOCOL=udp") {
		t.Errorf("a range of UDP ports: %q", got)
	}
	e := hookEvent{granted: []backends.Mapping{tcp, m}, previous: netip.AddrPortFrom(netip.Addr{}, 80)}
	got := strings.Join(e.environment(), " ") + " "
	for _, want := range []string{"EVENT=changed ", "EXTERNAL_IP= ", "EXTERNAL_PORT=81 ", "PREVIOUS_PORT=80 ", "PROTOCOL=both "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q: want %q", got, want)
		}
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	got, err := runTestCommand(t.Context(), hookCommand(t, "print", "a b", ""), testTimeout)
	want := testEvent.environment()
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
	got, err := runTestCommand(t.Context(), hookCommand(t, "fail"), testTimeout)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("unexpected error: %v", err)
	}
	if got != "--exec: out\n--exec: err\\x1b[2J\n" {
		t.Errorf("unexpected output or environment: %q", got)
	}
	if _, err := runTestCommand(t.Context(), []string{"no-such-command-of-goforward"}, testTimeout); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("missing command: %v", err)
	}
	if _, err := runTestCommand(t.Context(), []string{t.TempDir()}, testTimeout); !errors.Is(err, fs.ErrPermission) && runtime.GOOS != "windows" {
		t.Errorf("a directory: %v", err)
	}
}

// TestExecTimeout checks that a command and its child processes are killed at the timeout and
// at the end.
func TestExecTimeout(t *testing.T) {
	t.Parallel()
	verbs := []string{"hang", "group"}
	if runtime.GOOS == "windows" {
		verbs = verbs[:1] // Windows has no process groups
	}
	for _, verb := range verbs {
		h := startHangServer(t)
		ctx, end := context.WithCancelCause(t.Context())
		go func() {
			<-h.connected
			end(errHookStopped)
		}()
		if _, err := runTestCommand(ctx, hookCommand(t, verb, h.addr), testTimeout); !errors.Is(err, errHookStopped) {
			t.Errorf("%s: %v", verb, err)
		}
		<-h.disconnected
	}
	h := startHangServer(t)
	_, err := runTestCommand(t.Context(), hookCommand(t, "hang", h.addr), time.Millisecond)
	if err == nil || err.Error() != "killed, because it did not finish within 1ms" {
		t.Errorf("unexpected error: %v", err)
	}
}

// TestExecBackgroundProcess checks that --exec does not wait for a process that the command
// left in the background.
func TestExecBackgroundProcess(t *testing.T) {
	t.Parallel()
	h := startHangServer(t)
	got, err := runTestCommand(t.Context(), hookCommand(t, "leave", h.addr), testTimeout)
	if err != nil {
		t.Errorf("%v: %s", err, got)
	}
	<-h.connected
	select {
	case <-h.disconnected:
		t.Error("the background process was killed")
	default:
	}
}

// hookMain makes this test binary a command for --exec:
//
//	hook print ARG…    prints its variables and arguments
//	hook fail          prints to both outputs, and exits with 7
//	hook leave ADDR    starts hook hang in the background, and exits with 0
//	hook hang ADDR     connects to ADDR, and runs until it is killed
//	hook group ADDR    starts hook hang, and waits for it
func hookMain(args []string) {
	switch args[0] {
	case "print":
		for _, pair := range os.Environ() {
			if strings.HasPrefix(pair, "GOFORWARD_") && !strings.HasPrefix(pair, "GOFORWARD_LAB") { // GOFORWARD_LAB is for the lab tests
				fmt.Println(pair)
			}
		}
		fmt.Printf("args %q", args[1:])
	case "fail":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err\x1b[2J")
		os.Exit(7)
	case "leave", "group":
		cmd := exec.Command(os.Args[0], "hook", "hang", args[1])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err := cmd.Start()
		if err == nil && args[0] == "group" {
			err = cmd.Wait()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "hang":
		conn, err := net.Dial("tcp", args[1])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_, _ = io.Copy(io.Discard, conn) // until the test closes the connection
	}
	os.Exit(0)
}

// hookCommand returns the command line that runs hookMain.
func hookCommand(t *testing.T, args ...string) []string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{path, "hook"}, args...)
}

// hangServer accepts the connection of a hanging hook.
type hangServer struct {
	addr         string
	conn         net.Conn
	connected    chan struct{} // closed when the hook has connected
	disconnected chan struct{} // closed when the connection has ended
}

func startHangServer(t *testing.T) *hangServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hangServer{addr: ln.Addr().String(), connected: make(chan struct{}), disconnected: make(chan struct{})}
	go func() {
		defer close(h.disconnected)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		h.conn = conn
		close(h.connected)
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		h.drop()
		<-h.disconnected
	})
	return h
}

// drop closes the connection if there is one, so that the hook exits.
func (h *hangServer) drop() {
	select {
	case <-h.connected:
		_ = h.conn.Close()
	default:
	}
}
