package labtest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// agent controls a process that runs agentProgram.
type agent struct {
	t          *testing.T
	proc       *lab.Running
	lastID     int // the number of the last call
	forwarders int
	unclaimed  map[int]result // results that arrived while the test waited for another result
	events     []event
}

// start starts an agent in the host.
func start(t *testing.T, host *lab.Host) *agent {
	t.Helper()
	return &agent{t: t, proc: host.Start(t, agentProgram, nil), unclaimed: map[int]result{}}
}

// remoteForwarder is a Forwarder in an agent.
type remoteForwarder struct {
	*agent
	n int
}

// forwarder creates another Forwarder in the agent.
func (a *agent) forwarder(c config) *remoteForwarder {
	a.t.Helper()
	got := a.await(a.begin(call{Op: "forwarder", Config: c}))
	if got.Failure != nil {
		a.t.Fatal(got.Failure)
	}
	a.forwarders++
	return &remoteForwarder{agent: a, n: a.forwarders - 1}
}

// newForwarder starts an agent with one Forwarder.
func newForwarder(t *testing.T, host *lab.Host, c config) *remoteForwarder {
	t.Helper()
	return start(t, host).forwarder(c)
}

// begin sends a call to the agent; await waits for its result.
func (a *agent) begin(c call) (id int) {
	a.t.Helper()
	a.lastID++
	c.ID = a.lastID
	a.proc.Send(c)
	return c.ID
}

func (a *agent) await(id int) result {
	a.t.Helper()
	for {
		if got, ok := a.unclaimed[id]; ok {
			delete(a.unclaimed, id)
			return got
		}
		a.receive()
	}
}

// receive reads one message of the agent: an event or a result.
func (a *agent) receive() {
	a.t.Helper()
	var got result
	a.proc.Expect(&got)
	if got.Event != nil {
		a.events = append(a.events, *got.Event)
		return
	}
	a.unclaimed[got.ID] = got
}

// do makes a call that must succeed, and waits for its result.
func (a *agent) do(c call) result {
	a.t.Helper()
	got := a.try(c)
	if got.Failure != nil {
		a.t.Fatalf("%s: %v", c.Op, got.Failure)
	}
	return got
}

// try makes a call that may fail, and waits for its result.
func (a *agent) try(c call) result {
	a.t.Helper()
	return a.await(a.begin(c))
}

// wantEvent waits for the next event, which must be of this kind.
func (a *agent) wantEvent(want forward.EventKind) event {
	a.t.Helper()
	e := a.nextEvent()
	if e.Kind != want {
		a.t.Fatalf("event %v (%s), want %v", e.Kind, e.Reason, want)
	}
	return e
}

func (a *agent) nextEvent() event {
	a.t.Helper()
	for len(a.events) == 0 {
		a.receive()
	}
	e := a.events[0]
	a.events = a.events[1:]
	a.t.Logf("event %v: %v, before %v: %s", e.Kind, backends.Endpoint{AddrPort: e.External}, backends.Endpoint{AddrPort: e.Previous}, e.Reason)
	return e
}

// wantNoEvent checks that no unread event has arrived.
func (a *agent) wantNoEvent() {
	a.t.Helper()
	for _, e := range a.events {
		a.t.Errorf("event %v (%s), want no event", e.Kind, e.Reason)
	}
}

// exit ends the process in the same way as a return from main.
func (a *agent) exit() {
	a.t.Helper()
	a.proc.Send(call{Op: "exit"})
	a.proc.Wait()
}

// mapping is a Mapping in an agent, and its state when it was last fetched.
type mapping struct {
	f *remoteForwarder
	n int
	state
}

func (f *remoteForwarder) beginEnable(opts ...option) (id int) {
	f.t.Helper()
	return f.begin(call{Op: "enable", Forwarder: f.n, Options: opts})
}

// toMapping returns the mapping that Enable has returned, or its error.
func (f *remoteForwarder) toMapping(a result) (*mapping, error) {
	if a.Failure != nil {
		return nil, a.Failure
	}
	return &mapping{f: f, n: a.Mapping, state: a.State}, nil
}

func (f *remoteForwarder) enable(opts ...option) *mapping {
	f.t.Helper()
	m, err := f.toMapping(f.try(call{Op: "enable", Forwarder: f.n, Options: opts}))
	if err != nil {
		f.t.Fatalf("enable: %v", err)
	}
	return m
}

// wantEnableError checks that Enable fails with all of these errors, and returns how long
// the call took.
func (f *remoteForwarder) wantEnableError(want []error, opts ...option) time.Duration {
	f.t.Helper()
	got := f.try(call{Op: "enable", Forwarder: f.n, Options: opts})
	wantKinds(f.t, got.Failure.err(), want...)
	return got.Took
}

func (f *remoteForwarder) disable(sel ...option) {
	f.t.Helper()
	f.do(call{Op: "disable", Forwarder: f.n, Options: sel})
}

func (f *remoteForwarder) disableAll(sel ...option) int {
	f.t.Helper()
	return f.do(call{Op: "disable all", Forwarder: f.n, Options: sel}).Count
}

func (f *remoteForwarder) externalIP() netip.Addr {
	f.t.Helper()
	return f.do(call{Op: "external IP", Forwarder: f.n}).Addr
}

func (f *remoteForwarder) mappings() []forward.Entry {
	f.t.Helper()
	return f.do(call{Op: "mappings", Forwarder: f.n}).Entries
}

// close closes the Forwarder and returns how long the call took.
func (f *remoteForwarder) close() time.Duration {
	f.t.Helper()
	return f.do(call{Op: "close", Forwarder: f.n}).Took
}

// fetchState fetches the state of the mapping from the agent.
func (m *mapping) fetchState() state {
	m.f.t.Helper()
	m.state = m.f.do(call{Op: "state", Mapping: m.n}).State
	return m.state
}

// wait waits until the mapping is granted, and fetches its state.
func (m *mapping) wait(within time.Duration) {
	m.f.t.Helper()
	m.state = m.f.do(call{Op: "wait", Mapping: m.n, Within: within}).State
}

func (m *mapping) refresh(opts ...option) {
	m.f.t.Helper()
	m.state = m.f.do(call{Op: "refresh", Mapping: m.n, Options: opts}).State
}

func (m *mapping) close() {
	m.f.t.Helper()
	m.f.do(call{Op: "close mapping", Mapping: m.n})
}

// wantKinds checks that err matches all of these errors.
func wantKinds(t *testing.T, err error, want ...error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", want)
	}
	t.Logf("got the expected error: %v", err)
	for _, kind := range want {
		if !errors.Is(err, kind) {
			t.Errorf("the error is not %v: %v", kind, err)
		}
	}
}

// wantNotKind checks that err does not match kind.
func wantNotKind(t *testing.T, err error, kind error) {
	t.Helper()
	if errors.Is(err, kind) {
		t.Errorf("the error is %v: %v", kind, err)
	}
}

// call is a request to an agent.
type call struct {
	ID        int
	Op        string
	Forwarder int
	Mapping   int
	Config    config
	Options   []option
	Within    time.Duration // the timeout of the call's context; 0: none
	Cancel    int           // the number of the call to cancel
}

// result is the result of a call. If ID is 0, it is an event.
type result struct {
	ID      int
	Mapping int
	State   state
	Count   int
	Addr    netip.Addr
	Entries []forward.Entry
	Failure *failure
	Took    time.Duration
	Event   *event
}

// config has the fields of forward.Config that are sent to an agent.
type config struct {
	Package          bool // use the package-level functions instead of a Forwarder
	Gateway          netip.AddrPort
	Interface        string
	DiscoveryTimeout time.Duration
	RequestTimeout   time.Duration
	Lifetime         time.Duration
	CheckEvery       time.Duration
	Protocols        []string
	UPnPURL          string
	StateFile        string // the path of the state file
}

// state is the state of a Mapping.
type state struct {
	External, Internal netip.AddrPort
	Grants             []backends.Mapping
	Backend            string
	Gateway            netip.AddrPort
	Expires            time.Time
	Scope              string
	NextAttempt        time.Time
	Failure            *failure // Mapping.Err
}

// event is a forward.Event.
type event struct {
	Forwarder int
	Kind      forward.EventKind
	External  netip.AddrPort // of State, or the zero value
	Previous  netip.AddrPort
	Reason    string
	Time      time.Time
}

// option is a forward.Option or, in calls of disable, a forward.Selector.
type option struct {
	Name     string
	Port     uint16
	Lifetime time.Duration
	Peer     netip.AddrPort
}

func tcp(port uint16) option          { return option{Name: "tcp", Port: port} }
func udp(port uint16) option          { return option{Name: "udp", Port: port} }
func both(port uint16) option         { return option{Name: "both", Port: port} }
func external(port uint16) option     { return option{Name: "external", Port: port} }
func lifetime(d time.Duration) option { return option{Name: "lifetime", Lifetime: d} }
func from(peer netip.AddrPort) option { return option{Name: "from", Peer: peer} }
func to(host netip.AddrPort) option   { return option{Name: "to", Peer: host} }

func (o option) criterion() (c forward.Criterion, ok bool) {
	switch o.Name {
	case "tcp":
		return forward.TCP(o.Port), true
	case "udp":
		return forward.UDP(o.Port), true
	case "both":
		return forward.Both(o.Port), true
	case "external":
		return forward.External(o.Port), true
	case "from":
		return forward.From(o.Peer), true
	case "to":
		return forward.To(o.Peer), true
	}
	return nil, false
}

var (
	exact      = option{Name: "exact"}
	samePort   = option{Name: "same port"}
	once       = option{Name: "once"}
	background = option{Name: "background"}
	overIPv6   = option{Name: "ipv6"}
	permanent  = option{Name: "permanent"}
	foreign    = option{Name: "foreign"}
	everything = option{Name: "everything"}
)

func (o option) option() forward.Option {
	switch o.Name {
	case "exact":
		return forward.Exact()
	case "same port":
		return forward.SamePort()
	case "once":
		return forward.Once()
	case "background":
		return forward.Background()
	case "ipv6":
		return forward.IPv6()
	case "permanent":
		return forward.Lifetime(forward.Forever)
	case "lifetime":
		return forward.Lifetime(o.Lifetime)
	}
	c, ok := o.criterion()
	if !ok {
		return nil // Enable refuses it
	}
	return c
}

func toOptions(all []option) []forward.Option {
	var out []forward.Option
	for _, o := range all {
		out = append(out, o.option())
	}
	return out
}

func toSelectors(all []option) []forward.Selector {
	var out []forward.Selector
	for _, o := range all {
		switch o.Name {
		case "foreign":
			out = append(out, forward.Foreign())
			continue
		case "everything":
			out = append(out, forward.Everything())
			continue
		}
		c, _ := o.criterion()
		out = append(out, c)
	}
	return out
}

// errorKinds are the errors that errors.Is matches in both processes.
var errorKinds = []error{
	backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed,
	backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrNotAuthorized,
	backends.ErrConflict, backends.ErrPrivateWAN,
	forward.ErrNoGateway, forward.ErrNoMapping, forward.ErrClosed,
	net.ErrClosed, context.DeadlineExceeded, context.Canceled, syscall.ECONNREFUSED,
}

// failure is an error of another process.
type failure struct {
	Text  string
	Kinds []int // indices into errorKinds
}

func toFailure(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	for i, kind := range errorKinds {
		if errors.Is(err, kind) {
			f.Kinds = append(f.Kinds, i)
		}
	}
	return f
}

// err returns the failure as an error, or nil if there is none.
func (f *failure) err() error {
	if f == nil {
		return nil
	}
	return f
}

func (f *failure) Error() string { return f.Text }

// Is implements the interface of errors.Is.
func (f *failure) Is(target error) bool {
	for _, i := range f.Kinds {
		if errorKinds[i] == target {
			return true
		}
	}
	return false
}
