package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// queueTest is a queue that logs its runs and its reports.
type queueTest struct {
	execQueue
	start time.Time
	mu    sync.Mutex
	log   []string
	end   context.CancelFunc
	ended chan struct{}
}

// startTestQueue starts a queue with the given action. It must be called in a synctest bubble.
func startTestQueue(do func(ctx context.Context, name string) error) *queueTest {
	q := &queueTest{start: time.Now(), ended: make(chan struct{})}
	q.execQueue = execQueue{
		do: func(ctx context.Context, e execEvent) error {
			q.logf("%s", e.name)
			return do(ctx, e.name)
		},
		report:  func(e execEvent, err error) { q.logf("%s: %v", e.name, err) },
		pending: make(chan execEvent, maxQueuedEvents),
	}
	ctx, end := context.WithCancel(context.Background())
	q.end = end
	go func() {
		defer close(q.ended)
		q.run(ctx)
	}()
	return q
}

func (q *queueTest) logf(format string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.log = append(q.log, fmt.Sprintf("%v ", time.Since(q.start))+fmt.Sprintf(format, args...))
}

// want compares the log since the last call.
func (q *queueTest) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !reflect.DeepEqual(q.log, want) {
		t.Errorf("got\n%q, want\n%q", q.log, want)
	}
	q.log = nil
}

func (q *queueTest) postAll(names ...string) {
	for _, name := range names {
		q.post(execEvent{name: name})
	}
}

func (q *queueTest) finish() {
	q.end()
	<-q.ended
	q.reportRest()
}

// TestExecQueue checks that the command runs for each event, in order, one at a time, and that
// it does not run again after a failure.
func TestExecQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := startTestQueue(func(_ context.Context, name string) error {
			time.Sleep(time.Second)
			if strings.HasPrefix(name, "fail") {
				return errHookFailed
			}
			return nil
		})
		q.postAll("a", "a", "fail 1", "fail 2", "b", "c")
		time.Sleep(time.Hour)
		q.want(t, "0s a", "1s a", "2s fail 1", "3s fail 1: no", "3s fail 2", "4s fail 2: no", "4s b", "5s b: <nil>", "5s c")
		q.finish()
		q.want(t)
	})
}

// TestExecQueueFull checks that the oldest events are dropped, and reported, if too many wait.
func TestExecQueueFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		finish := make(chan struct{})
		q := startTestQueue(func(context.Context, string) error { <-finish; return nil })
		q.postAll("running")
		q.want(t, "0s running")
		for i := range maxQueuedEvents + 2 {
			q.postAll(strconv.Itoa(i))
		}
		dropped := ": " + errQueueFull.Error()
		q.want(t, "0s 0"+dropped, "0s 1"+dropped)
		close(finish)
		var want []string
		for i := range maxQueuedEvents {
			want = append(want, fmt.Sprintf("0s %d", i+2))
		}
		q.want(t, want...)
		q.finish()
	})
}

// TestExecQueueStops checks that at the end a running command has hookGrace to finish, and that
// the events that wait are reported.
func TestExecQueueStops(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		takes time.Duration
		want  []string
	}{
		"in time":  {time.Second, nil},
		"too long": {time.Hour, []string{"2s a: " + errHookStopped.Error()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := startTestQueue(func(ctx context.Context, _ string) error {
					select {
					case <-time.After(tt.takes):
						return nil
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				})
				q.postAll("a")
				q.want(t, "0s a")
				q.postAll("b", "c")
				q.finish()
				took := min(tt.takes, hookGrace)
				q.want(t, append(tt.want, fmt.Sprintf("%v b: %v", took, errNotRunAtEnd), fmt.Sprintf("%v c: %v", took, errNotRunAtEnd))...)
			})
		})
	}
}

// TestWatchEnvironment checks for which events the command runs, and its variables.
func TestWatchEnvironment(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	w := &watchSession{app: newApp(&stdout, &stderr), exec: &execQueue{pending: make(chan execEvent, maxQueuedEvents)}}
	w.route = route{gateway: netip.MustParseAddrPort("192.0.2.1:0"), iface: "eth0", local: netip.MustParseAddr("192.0.2.9")}
	pcp := availableBackend{protocol: protocol{name: "pcp", title: "PCP"}, gateway: w.route.gateway}
	natpmp := availableBackend{protocol: protocol{name: "natpmp", title: "NAT-PMP"}, gateway: w.route.gateway}
	w.printGateway(nil)
	w.printGateway([]availableBackend{natpmp, pcp})
	w.printAddress(natpmp, netip.MustParseAddr("45.45.45.1"))
	w.printError(errHookFailed, time.Now())
	w.printChange(observedChange{pcp, backends.Change{Kind: backends.AddressChanged, External: netip.MustParseAddr("45.45.45.9"), Reason: "a\x00\nb"}})
	w.app.currentRoute = func(*settings) route { return route{reason: "no route"} }
	w.checkRoute()
	for _, want := range []string{
		"EVENT=gateway GATEWAY=192.0.2.1 EXTERNAL_IP= PREVIOUS_IP= BACKEND= PROTOCOLS= REASON= INTERFACE=eth0 LOCAL_IP=192.0.2.9",
		"EVENT=gateway GATEWAY=192.0.2.1 EXTERNAL_IP= PREVIOUS_IP= BACKEND= PROTOCOLS=natpmp,pcp REASON= INTERFACE=eth0 LOCAL_IP=192.0.2.9",
		"EVENT=address GATEWAY=192.0.2.1 EXTERNAL_IP=45.45.45.1 PREVIOUS_IP= BACKEND=natpmp PROTOCOLS=natpmp,pcp REASON= INTERFACE=eth0 LOCAL_IP=192.0.2.9",
		`EVENT=address_changed GATEWAY=192.0.2.1 EXTERNAL_IP=45.45.45.9 PREVIOUS_IP=45.45.45.1 BACKEND=pcp PROTOCOLS=natpmp,pcp REASON=a\x00; b INTERFACE=eth0 LOCAL_IP=192.0.2.9`,
		"EVENT=gateway GATEWAY= EXTERNAL_IP= PREVIOUS_IP= BACKEND= PROTOCOLS= REASON=no route INTERFACE= LOCAL_IP=",
	} {
		select {
		case e := <-w.exec.pending:
			got := strings.ReplaceAll(strings.Join(e.environment, " "), "GOFORWARD_", "")
			if got != want || !slices.Contains(e.environment, "GOFORWARD_EVENT="+e.name) {
				t.Errorf("%s:\n%s, want\n%s", e.name, got, want)
			}
		default:
			t.Fatalf("no event, want %s", want)
		}
	}
	if n := len(w.exec.pending); n != 0 {
		t.Errorf("%d more events", n)
	}
}

// TestPrintExecResult checks the line and the object for the result of a run.
func TestPrintExecResult(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr)
	a.settings.json = true
	a.printExecResult(execEvent{name: "address_changed"}, errHookFailed)
	a.printExecResult(execEvent{name: "restarted"}, nil)
	var lines []string
	for line := range strings.Lines(stderr.String()) {
		lines = append(lines, line[len("00:00:00 "):])
	}
	if want := []string{"--exec: address changed: no\n", "--exec: restarted: succeeded after a failure\n"}; !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	for _, want := range []string{`"for":"address_changed","error":"no"}`, `"for":"restarted"}`} {
		if got := stdout.String(); !strings.Contains(got, want) || strings.Count(got, `{"event":"exec","time":"2`) != 2 {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
