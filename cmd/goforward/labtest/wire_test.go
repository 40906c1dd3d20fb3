package labtest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// call is what a test wants an agent to do.
type call struct {
	ID        int
	Op        string
	Forwarder int
	Mapping   int
	Config    config
	Options   []option
	Within    time.Duration // bounds the call's context; 0 does not
	Cancel    int           // the call to cancel
}

// answer is what came of a call or, with ID 0, an event.
type answer struct {
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

// config is the part of forward.Config that goes over the wire.
type config struct {
	Package   bool // the package-level calls, in place of a Forwarder
	Gateway   netip.AddrPort
	Interface string
	Wait      time.Duration
	Timeout   time.Duration
	Lifetime  time.Duration
	Order     []string
	IGD       string
	State     string // the state file
}

// state is what a Mapping tells.
type state struct {
	External, Internal netip.AddrPort
	Granted            []backends.Mapping
	Backend            string
	Gateway            netip.AddrPort
	Expires            time.Time
	Scope              string
	NextTry            time.Time
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

// option is a forward.Option or, in disable, a forward.Selector.
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
		return nil // refused by Enable
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

// kinds are the errors that errors.Is tells on both ends.
var kinds = []error{
	backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed,
	backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrNotAuthorized,
	backends.ErrConflict, backends.ErrPrivateWAN,
	forward.ErrNoGateway, forward.ErrNoMapping, forward.ErrClosed,
	net.ErrClosed, context.DeadlineExceeded, context.Canceled, syscall.ECONNREFUSED,
}

// failure is an error of another process.
type failure struct {
	Text  string
	Kinds []int // indices of kinds
}

func toFailure(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	for i, kind := range kinds {
		if errors.Is(err, kind) {
			f.Kinds = append(f.Kinds, i)
		}
	}
	return f
}

// err is the failure as an error, which is nil where there is none.
func (f *failure) err() error {
	if f == nil {
		return nil
	}
	return f
}

func (f *failure) Error() string { return f.Text }

// Is is for errors.Is.
func (f *failure) Is(target error) bool {
	for _, i := range f.Kinds {
		if kinds[i] == target {
			return true
		}
	}
	return false
}
