package reach

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// The responses of coturn 4.6.1: this host is 45.45.45.2, and the second address of the server is
// 45.45.45.3:3479. The second one is for a request with an unknown attribute.
const (
	coturnSuccess = "01010048 2112a442 000102030405060708090a0b 00200008 0001bd530c3f8940 00010008 00019c412d2d2d02" +
		"802b0008 00010d962d2d2d02 802c0008 00010d972d2d2d03 80220014 436f7475726e2d342e362e312027476f72737427"
	coturnError = "0111003c 2112a442 000102030405060708090a0b 00090018 00000414556e6b6e6f776e20417474726962757465000000" +
		"000a0002 77770000 80220014 436f7475726e2d342e362e312027476f72737427"
	otherAttribute = "802c0008 00010d972d2d2d03"
)

var stunTarget = Target{
	Protocol: backends.UDP,
	External: netip.MustParseAddrPort("45.45.45.2:40000"),
	Internal: netip.MustParseAddrPort("192.168.77.2:40000"),
	Gateway:  netip.MustParseAddr("192.168.77.1"),
}

// The endpoints from which the server answers.
const bothChanged, addressChanged = "45.45.45.3:3479", "45.45.45.3:3478"

// stunServer is a STUN server in the process of the test. Its answers to the external port arrive at
// the catcher.
type stunServer struct {
	t       testing.TB
	addr    string // default 8.8.4.4:3478
	catcher *stubCatcher
	plain   string // the response to a plain request, or empty for silence
	// first handles a plain request instead.
	first func(r stunRequest, conn *stunConn)
	// forward handles a request for an answer to the external port. By default, the answer arrives from
	// the source.
	forward func(r stunRequest, conn *stunConn)
	delay   time.Duration

	mu       sync.Mutex
	requests []stunRequest
	dialled  int
}

// stunRequest is a request as the server reads it.
type stunRequest struct {
	id     []byte // with the cookie
	port   uint16
	source string // the endpoint from which the answer is requested
}

func newStunServer(t testing.TB) *stunServer {
	return &stunServer{t: t, addr: "8.8.4.4:3478", catcher: &stubCatcher{owner: OwnerProgram}, plain: coturnSuccess}
}

// prober returns a prober with memories of its own.
func (s *stunServer) prober() *stunProber {
	p := STUN("stun.example").(*stunProber)
	p.contacts, p.flows = &contacts{}, &stunFlows{}
	p.dial = func(_ context.Context, _ Target, network, host string) (net.Conn, error) {
		if network != "udp" || host != "stun.example:3478" {
			s.t.Errorf("dialled %s %s", network, host)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dialled++
		return &stunConn{server: s, in: make(chan []byte, 10), closed: make(chan struct{})}, nil
	}
	return p
}

// read reads and records a request.
func (s *stunServer) read(b []byte) stunRequest {
	r := stunRequest{id: append([]byte(nil), b[4:20]...)}
	switch attrs := hex.EncodeToString(b[20:]); attrs {
	case "":
	case "002700049c4000000003000400000006":
		r.port, r.source = 40000, bothChanged
	case "002700049c4000000003000400000004":
		r.port, r.source = 40000, addressChanged
	default:
		s.t.Errorf("attributes %s", attrs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	return r
}

// handle handles a request.
func (s *stunServer) handle(r stunRequest, conn *stunConn) {
	switch {
	case r.port == 0 && s.first != nil:
		s.first(r, conn)
	case r.port == 0 && s.plain != "":
		conn.reply(s.plain, r.id)
	case r.port == 0:
	case s.forward != nil:
		s.forward(r, conn)
	default:
		s.arrive(r, r.source)
	}
}

// arrive lets the answer arrive from a source.
func (s *stunServer) arrive(r stunRequest, from string) {
	s.catcher.Match(stunMessage(s.t, coturnSuccess, r.id), netip.MustParseAddrPort(from))
}

// forwarded returns the sources of the requests for an answer to the external port.
func (s *stunServer) forwarded() (sources []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.port != 0 {
			sources = append(sources, r.source)
		}
	}
	return sources
}

// stunMessage returns a message with another transaction ID.
func stunMessage(t testing.TB, text string, id []byte) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	copy(b[4:20], id)
	return b
}

// stunConn is the socket of the prober.
type stunConn struct {
	net.Conn
	server *stunServer
	in     chan []byte // nil is an ICMP error
	closed chan struct{}
}

func (c *stunConn) RemoteAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.server.addr))
}

func (c *stunConn) Write(b []byte) (int, error) {
	r := c.server.read(b)
	if c.server.delay > 0 {
		time.AfterFunc(c.server.delay, func() { c.server.handle(r, c) })
	} else {
		c.server.handle(r, c)
	}
	return len(b), nil
}

func (c *stunConn) Read(b []byte) (int, error) {
	select {
	case m := <-c.in:
		if m == nil {
			return 0, fmt.Errorf("read: %w", errno.ECONNREFUSED)
		}
		return copy(b, m), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *stunConn) Close() error { close(c.closed); return nil }

// reply sends a response to the port of the request.
func (c *stunConn) reply(text string, id []byte) {
	select {
	case c.in <- stunMessage(c.server.t, text, id):
	default: // the buffer of the socket is full
	}
}

// flood sends a message until the socket is closed.
func (c *stunConn) flood(message []byte) {
	for {
		select {
		case c.in <- message:
		case <-c.closed:
			return
		}
	}
}

// silent is a server whose answers to the external port do not arrive.
func silent(stunRequest, *stunConn) {}

// TestSTUN checks what answers prove, and that nothing that a server says is a proof.
func TestSTUN(t *testing.T) {
	edit := func(from, to string) string {
		s := strings.Replace(coturnSuccess, from, to, 1)
		if s == coturnSuccess {
			t.Fatalf("%q is not in the message", from)
		}
		return s
	}
	for name, tt := range map[string]struct {
		set   func(*stunServer)
		from  string // of the arrival that proves reachability
		err   string // a part of the error otherwise
		takes time.Duration
		asks  int // requests for an answer to the external port
	}{
		"arrives": {from: bothChanged, asks: 1},
		"arrives after a loss": {
			set: func(s *stunServer) {
				s.forward = func(r stunRequest, _ *stunConn) {
					if len(s.forwarded()) == 3 {
						s.arrive(r, r.source)
					}
				}
			},
			from: bothChanged, takes: 3 * stunRTO, asks: 3,
		},
		"far away": {
			set:  func(s *stunServer) { s.delay = stunRTO + time.Millisecond },
			from: bothChanged, takes: 2*stunRTO + 2*time.Millisecond, asks: 1, // the second request is not repeated
		},
		"silent": {set: func(s *stunServer) { s.plain = "" }, err: "it does not answer", takes: stunTimeout},
		"too late": {
			set: func(s *stunServer) { s.delay = stunTimeout + time.Second },
			err: "it does not answer", takes: stunTimeout,
		},
		"refuses": {
			set: func(s *stunServer) { s.first = func(_ stunRequest, c *stunConn) { c.in <- nil } },
			err: "refuses the port",
		},
		"nothing arrives": {
			set: func(s *stunServer) { s.forward = silent },
			err: "nothing arrived: stun:stun.example says that it answers from 45.45.45.3:3479; it has not reached 45.45.45.2:40000 before", takes: stunTimeout, asks: 4,
		},
		"goes away": {
			set: func(s *stunServer) { s.forward = func(stunRequest, *stunConn) { s.plain = "" } },
			err: "no longer answers", takes: 2 * stunTimeout, asks: 4,
		},
		"goes away with an ICMP error": {
			set: func(s *stunServer) { s.forward = func(_ stunRequest, c *stunConn) { c.in <- nil } },
			err: "refuses the port", takes: stunTimeout, asks: 4,
		},
		"an ICMP error and an arrival": {
			set: func(s *stunServer) {
				s.forward = func(r stunRequest, c *stunConn) {
					c.in <- nil
					time.AfterFunc(time.Millisecond, func() { s.arrive(r, r.source) })
				}
			},
			from: bothChanged, takes: time.Millisecond, asks: 1,
		},
		"the address changes": {
			set: func(s *stunServer) {
				s.forward = func(stunRequest, *stunConn) { s.plain = edit("0c3f8940", "0c3f8946") }
			},
			err: "sees this host at 45.45.45.4 instead of 45.45.45.2", takes: stunTimeout, asks: 4,
		},
		"an unnamed source": {
			set: func(s *stunServer) { s.forward = func(r stunRequest, _ *stunConn) { s.arrive(r, "8.8.8.8:3479") } },
			err: "nothing arrived", takes: stunTimeout, asks: 4,
		},
		"the address that was contacted": {
			set: func(s *stunServer) { s.forward = func(r stunRequest, _ *stunConn) { s.arrive(r, s.addr) } },
			err: "nothing arrived", takes: stunTimeout, asks: 4,
		},
		"an unnamed port": {
			set: func(s *stunServer) { s.forward = func(r stunRequest, _ *stunConn) { s.arrive(r, "45.45.45.3:9999") } },
			err: "from 45.45.45.3:9999 instead of 45.45.45.3:3479", asks: 1,
		},
		"the wrong ID": {
			set: func(s *stunServer) {
				s.forward = func(r stunRequest, _ *stunConn) { r.id[15] ^= 1; s.arrive(r, r.source) }
			},
			err: "nothing arrived", takes: stunTimeout, asks: 4,
		},
		"the ID of the first request": {
			set: func(s *stunServer) {
				s.forward = func(r stunRequest, _ *stunConn) { r.id = s.requests[0].id; s.arrive(r, r.source) }
			},
			err: "nothing arrived", takes: stunTimeout, asks: 4,
		},
		"error 420": {
			set: func(s *stunServer) { s.forward = func(r stunRequest, c *stunConn) { c.reply(coturnError, r.id) } },
			err: `stun:stun.example: it reports error 420 "Unknown Attribute"`, asks: 1,
		},
		"error in the first response": {
			set: func(s *stunServer) { s.plain = coturnError },
			err: `it reports error 420 "Unknown Attribute"`,
		},
		"an error with control characters": {
			set: func(s *stunServer) { s.plain = strings.Replace(coturnError, "556e6b", "1b5bff", 1) },
			err: `error 420 "\x1b[\xffnown Attribute"`,
		},
		"answers to the port of the request": {
			set: func(s *stunServer) { s.forward = func(r stunRequest, c *stunConn) { c.reply(coturnSuccess, r.id) } },
			err: "does not support RESPONSE-PORT", asks: 1,
		},
		"a malformed response": {
			set: func(s *stunServer) { s.plain = edit(otherAttribute, "802c0008 00030d972d2d2d03") },
			err: "malformed",
		},
		"a malformed answer": {
			set: func(s *stunServer) {
				s.forward = func(r stunRequest, c *stunConn) { c.reply(strings.Replace(coturnSuccess, "0048", "0044", 1), r.id) }
			},
			err: "malformed", asks: 1,
		},
		"no second address": {
			set: func(s *stunServer) { s.plain = edit(otherAttribute, "802d0008 00010d972d2d2d03") },
			err: "stun:stun.example: it has no second address",
		},
		"no mapped address": {
			set: func(s *stunServer) { s.plain = edit("00200008", "80200008") },
			err: "XOR-MAPPED-ADDRESS",
		},
		"the second address was contacted": {
			set: func(s *stunServer) { s.addr = "45.45.45.3:1" },
			err: "it names 45.45.45.3:3479 as its second address, which proves nothing",
		},
		"the second address is private": {
			set: func(s *stunServer) { s.plain = edit("2d2d2d03", "c0a84d03") },
			err: "it names 192.168.77.3:3479 as its second address, which is not an address of the internet",
		},
		"the second address is on loopback": {
			set: func(s *stunServer) { s.plain = edit("2d2d2d03", "7f000001") },
			err: "which is not an address of the internet",
		},
		"the second address is this host's": {
			set: func(s *stunServer) { s.plain = edit("0d972d2d2d03", "0d972d2d2d02") },
			err: "proves nothing",
		},
		"the second address has port 0": {
			set: func(s *stunServer) { s.plain = edit("0d972d2d2d03", "00002d2d2d03") },
			err: "proves nothing",
		},
		"the second address is of IPv6": {
			set: func(s *stunServer) {
				s.plain = "01010024 2112a442 000102030405060708090a0b 00200008 0001bd530c3f8940 802c0014 00020d972a0c7777000200000000000000000003"
			},
			err: "which is not an address of the internet",
		},
		"sees a private address": {
			set: func(s *stunServer) { s.plain = edit("0c3f8940", "e1bae940") },
			err: "it sees this host at 192.168.77.2, which is not a public address",
		},
		"sees an address of IPv6": {
			set: func(s *stunServer) {
				s.plain = "01010024 2112a442 000102030405060708090a0b 00200014 0002bd530b1ed335000302030405060708090a09" + otherAttribute
			},
			err: "it sees this host at ",
		},
		"sees another public address": {
			set: func(s *stunServer) { s.plain = edit("0c3f8940", "0c3f8946") },
			err: "at the address 45.45.45.4: the router reports 45.45.45.2", asks: 1,
		},
		"a flood of other messages": {
			set: func(s *stunServer) {
				s.first = func(r stunRequest, c *stunConn) {
					r.id[15] ^= 1
					go c.flood(stunMessage(s.t, coturnSuccess, r.id))
				}
			},
			err: "it does not answer", takes: stunTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStunServer(t)
				if tt.set != nil {
					tt.set(s)
				}
				begun := time.Now()
				e, err := s.prober().Probe(t.Context(), stunTarget, s.catcher)
				if took := time.Since(begun); took != tt.takes {
					t.Errorf("it took %v, want %v", took, tt.takes)
				}
				if asks := s.forwarded(); len(asks) != tt.asks {
					t.Errorf("%d requests, want %d", len(asks), tt.asks)
				}
				if e.Level != LevelInternet || !s.catcher.IsEmpty() {
					t.Errorf("%+v; the expectation remains: %v", e, !s.catcher.IsEmpty())
				}
				if tt.from == "" {
					if e.Verdict != Unknown || err == nil || !strings.Contains(err.Error(), tt.err) {
						t.Errorf("%v, %v, want %q", e.Verdict, err, tt.err)
					}
					return
				}
				if err != nil || e.Verdict != Reachable || e.From.String() != tt.from || e.External != stunTarget.External || e.Detail == "" {
					t.Errorf("%+v, %v", e, err)
				}
			})
		})
	}
}

// TestSTUNFlows checks which endpoint of the server is used when, and what an answer then proves.
func TestSTUNFlows(t *testing.T) {
	const arrives, misses = true, false
	type step struct {
		wait    time.Duration
		arrives bool
		source  string // the endpoint that is used; empty: none
		want    Verdict
		err     string
	}
	for name, steps := range map[string][]step{
		"successes": {
			{0, arrives, bothChanged, Reachable, ""},
			{time.Minute, arrives, addressChanged, Reachable, ""},
			{time.Minute, arrives, "", Unknown, "it can measure 45.45.45.2:40000 again in 3m1s"},
			{3*time.Minute - time.Nanosecond, arrives, "", Unknown, "in 1s"},
			{time.Nanosecond, arrives, bothChanged, Reachable, ""},
			{time.Minute - time.Nanosecond, arrives, "", Unknown, "in 1s"},
			{time.Hour, arrives, addressChanged, Reachable, ""}, // the one that was not used for longer
			{0, arrives, bothChanged, Reachable, ""},
		},
		"a failure after a success": {
			{0, arrives, bothChanged, Reachable, ""},
			{time.Second, misses, addressChanged, Unreachable, ""},
			{sampleInterval, misses, bothChanged, Unreachable, ""},
			{sampleInterval, misses, "", Unknown, "again in"},
			{confirmWithin, arrives, "", Unknown, "again in"},
			{natMemory, arrives, addressChanged, Reachable, ""},
		},
		"a failure long after a success": {
			{0, arrives, bothChanged, Reachable, ""},
			{natMemory, misses, addressChanged, Unreachable, ""}, // it was never used
			{sampleInterval, misses, bothChanged, Unreachable, ""},
		},
		"the router remembers a success": {
			{0, arrives, bothChanged, Reachable, ""},
			{time.Second, misses, addressChanged, Unreachable, ""},
			{sampleInterval, arrives, bothChanged, Unknown, "the router may only remember an earlier one"},
			{sampleInterval, arrives, "", Unknown, "again in"}, // a success is no failure to confirm
		},
		"no confirmation after a while": {
			{0, arrives, bothChanged, Reachable, ""},
			{time.Second, misses, addressChanged, Unreachable, ""},
			{confirmWithin, misses, "", Unknown, "again in"},
		},
		"never reached": {
			{0, misses, bothChanged, Unknown, "has not reached"},
			{sampleInterval, misses, addressChanged, Unknown, "has not reached"},
			{sampleInterval, arrives, "", Unknown, "again in"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStunServer(t)
				p := s.prober()
				for i, step := range steps {
					time.Sleep(step.wait)
					if s.forward = silent; step.arrives {
						s.forward = nil
					}
					before := len(s.forwarded())
					e, err := p.Probe(t.Context(), stunTarget, s.catcher)
					if e.Verdict != step.want || (err != nil) != (step.want == Unknown) || err != nil && !strings.Contains(err.Error(), step.err) {
						t.Fatalf("step %d: %v, %v; want %v, %q", i, e.Verdict, err, step.want, step.err)
					}
					var used string
					for _, used = range s.forwarded()[before:] {
					}
					if used != step.source {
						t.Fatalf("step %d: the answer is requested from %q, want %q", i, used, step.source)
					}
				}
			})
		})
	}
}

// TestSTUNRefusals checks that an endpoint of the server stays usable if it was not used, and that the
// one that was used is remembered even if another one was requested.
func TestSTUNRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStunServer(t)
		p := s.prober()
		probe := func(want string) {
			t.Helper()
			if e, err := p.Probe(t.Context(), stunTarget, s.catcher); e.Verdict != Unknown || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, %v, want %q", e.Verdict, err, want)
			}
		}
		for range 3 {
			s.forward = func(r stunRequest, c *stunConn) { c.reply(coturnError, r.id) }
			probe("error 420")
			s.forward = func(r stunRequest, c *stunConn) { c.reply(coturnSuccess, r.id) }
			probe("RESPONSE-PORT")
		}
		s.forward = func(r stunRequest, _ *stunConn) { s.arrive(r, addressChanged) }
		probe("instead of " + bothChanged)
		probe("again in")
	})
}

// TestSTUNVerify checks the two samples of Verify: an answer that is missing twice, through different
// endpoints of the server, shows that the port is unreachable.
func TestSTUNVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStunServer(t)
		p := s.prober()
		if r := Verify(t.Context(), stunTarget, s.catcher, p); r.Verdict != Reachable || r.Proven != LevelInternet {
			t.Fatalf("%+v", r)
		}
		s.forward = silent
		r := Verify(t.Context(), stunTarget, s.catcher, p)
		if r.Verdict != Unreachable || !strings.Contains(r.Reason, "nothing arrived although stun:stun.example reached 45.45.45.2:40000 before") {
			t.Errorf("%v, %s", r.Verdict, r.Reason)
		}
		used := map[string]bool{}
		for _, source := range s.forwarded()[1:] {
			used[source] = true
		}
		if len(used) != 2 {
			t.Errorf("the answers were requested from %v", used)
		}
	})
}

// TestSTUNFlowsOfOthers checks what the memory of flows distinguishes.
func TestSTUNFlowsOfOthers(t *testing.T) {
	external, internal := stunTarget.External, stunTarget.Internal
	a, b := netip.MustParseAddrPort(bothChanged), netip.MustParseAddrPort(addressChanged)
	take := func(f *stunFlows, external, internal netip.AddrPort) (stunFlow, error) {
		return f.take(external, internal, a, b)
	}
	t.Run("another external port", func(t *testing.T) {
		var f stunFlows
		for range 2 {
			if _, err := take(&f, external, internal); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := take(&f, external, internal); err == nil {
			t.Error("a third flow")
		}
		if _, err := take(&f, netip.AddrPortFrom(external.Addr(), 40001), internal); err != nil {
			t.Error(err)
		}
	})
	t.Run("another internal endpoint", func(t *testing.T) {
		var f stunFlows
		first, _ := take(&f, external, internal)
		f.used(first, flowArrived)
		second, _ := take(&f, external, netip.MustParseAddrPort("192.168.77.3:40000"))
		f.used(second, flowMissed)
		if flow, err := take(&f, external, netip.MustParseAddrPort("192.168.77.3:40000")); err == nil {
			t.Errorf("%+v: the router may forward to the earlier endpoint", flow)
		}
		if flow, err := take(&f, external, internal); err != nil || !flow.confirms {
			t.Errorf("%+v, %v", flow, err)
		}
	})
	t.Run("a measurement that did not end", func(t *testing.T) {
		var f stunFlows
		first, _ := take(&f, external, internal)
		f.used(first, flowArrived)
		if _, err := take(&f, external, internal); err != nil { // it is cancelled
			t.Fatal(err)
		}
		if flow, err := take(&f, external, internal); err == nil {
			t.Errorf("%+v: no answer was missing", flow)
		}
	})
	t.Run("undone", func(t *testing.T) {
		var f stunFlows
		first, _ := take(&f, external, internal)
		f.used(first, flowArrived)
		for range 3 {
			flow, err := take(&f, external, internal)
			if err != nil || flow.source != b {
				t.Fatalf("%+v, %v", flow, err)
			}
			f.undo(flow)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var f stunFlows
			for i := range maxStunFlows + 10 {
				_, err := f.take(external, internal, netip.AddrPortFrom(a.Addr(), uint16(i+1)))
				if (err == nil) != (i < maxStunFlows) {
					t.Fatalf("flow %d: %v", i, err)
				}
			}
			time.Sleep(natMemory)
			if _, err := f.take(external, internal, netip.AddrPortFrom(a.Addr(), maxStunFlows+1)); err != nil || len(f.all) != 1 {
				t.Errorf("%v; %d flows are remembered", err, len(f.all))
			}
		})
	})
}

// TestSTUNCancelled checks that the end of the context ends each phase, and is the error.
func TestSTUNCancelled(t *testing.T) {
	for name, phase := range map[string]func(*stunServer){
		"first":  func(s *stunServer) { s.plain = "" },
		"second": func(s *stunServer) { s.forward = silent },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStunServer(t)
				phase(s)
				ctx, cancel := context.WithCancelCause(t.Context())
				cause := errors.New("cause")
				time.AfterFunc(time.Second, func() { cancel(cause) })
				begun := time.Now()
				e, err := s.prober().Probe(ctx, stunTarget, s.catcher)
				if took := time.Since(begun); e.Verdict != Unknown || !errors.Is(err, cause) || took != time.Second {
					t.Errorf("%v, %v after %v", e.Verdict, err, took)
				}
			})
		})
	}
}

// TestSTUNContacted checks that an answer from an address that this process contacts, also during the
// measurement, proves nothing.
func TestSTUNContacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStunServer(t)
		p := s.prober()
		s.forward = func(r stunRequest, _ *stunConn) {
			p.contacts.add(netip.MustParseAddr("45.45.45.3")) // another prober
			s.arrive(r, r.source)
		}
		for i := range 2 {
			if e, err := p.Probe(t.Context(), stunTarget, s.catcher); err == nil || !strings.Contains(err.Error(), "has contacted its second address 45.45.45.3 too") {
				t.Errorf("%d: %v, %v", i, e.Verdict, err)
			}
		}
		if asks := s.forwarded(); len(asks) != 1 {
			t.Errorf("%d requests", len(asks))
		}
	})
}

// TestSTUNNothingSent checks the cases in which no host is contacted.
func TestSTUNNothingSent(t *testing.T) {
	blind := errors.New("another program has the port")
	tcp, loopback, hidden := stunTarget, stunTarget, stunTarget
	tcp.Protocol = backends.TCP
	loopback.Gateway = netip.MustParseAddr("127.0.0.1")
	hidden.External = netip.AddrPort{}
	for name, tt := range map[string]struct {
		target Target
		blind  error
		want   error
	}{
		"TCP":                     {tcp, nil, backends.ErrUnsupported},
		"a gateway on loopback":   {loopback, nil, backends.ErrUnsupported},
		"no external port":        {hidden, nil, backends.ErrUnsupported},
		"nothing can be observed": {stunTarget, blind, blind},
	} {
		s := newStunServer(t)
		s.catcher.blind = tt.blind
		if e, err := s.prober().Probe(t.Context(), tt.target, s.catcher); e.Verdict != Unknown || !errors.Is(err, tt.want) || s.dialled > 0 {
			t.Errorf("%s: %v, %v, dialled %d times", name, e.Verdict, err, s.dialled)
		}
	}
}

// TestSTUNServer checks the texts that name a server.
func TestSTUNServer(t *testing.T) {
	for server, want := range map[string]string{
		"stun.example":        "stun.example:3478",
		"stun.example:1":      "stun.example:1",
		"203.0.113.7":         "203.0.113.7:3478",
		"203.0.113.7:65535":   "203.0.113.7:65535",
		"2001:db8::7":         "[2001:db8::7]:3478",
		"[2001:db8::7]":       "[2001:db8::7]:3478",
		"[2001:db8::7]:99":    "[2001:db8::7]:99",
		"fe80::1%eth0":        "[fe80::1%eth0]:3478",
		"":                    "",
		":3478":               "",
		"stun.example:":       "",
		"stun.example:0":      "",
		"stun.example:65536":  "",
		"stun.example:stun":   "",
		"stun.example:1:2":    "",
		"[2001:db8::7":        "",
		"[stun.example]":      "",
		"[stun.example]:3478": "stun.example:3478",
		"a b":                 "",
		"http://stun.example": "",
		"0.0.0.0":             "",
		"[::]:3478":           "",
	} {
		p := STUN(server).(*stunProber)
		if p.Name() != "stun:"+server || p.host != want || (p.err == nil) != (want != "") {
			t.Errorf("%q: %q, %q, %v, want %q", server, p.Name(), p.host, p.err, want)
		}
		if want == "" {
			if _, err := p.Probe(t.Context(), stunTarget, &stubCatcher{owner: OwnerProgram}); !errors.Is(err, backends.ErrInvalid) {
				t.Errorf("%q: %v", server, err)
			}
		}
	}
}

// TestSTUNSockets checks the exchange over real sockets. The source of the requests is not the
// internal port.
func TestSTUNSockets(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		addr     netip.Addr
		external string
		plain    string
		source   string
		xorsID   bool // the mapped address
	}{
		"IPv4": {addr: loopback4, external: "45.45.45.2:40000", plain: coturnSuccess, source: bothChanged},
		"IPv6": {
			addr: loopback6, external: "[2a0c:7777:2::2]:40000", xorsID: true, source: "[2a0c:7777:2::3]:3479",
			plain: "01010078 2112a442 000102030405060708090a0b 00200014 0002bd530b1ed335000302030405060708090a09" +
				"00010014 00029c412a0c7777000200000000000000000002 802b0014 00020d962a0c7777000200000000000000000002" +
				"802c0014 00020d972a0c7777000200000000000000000003 80220014 436f7475726e2d342e362e312027476f72737427",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(tt.addr, 0)))
			if err != nil {
				t.Skip(err)
			}
			catcher := &stubCatcher{owner: OwnerProgram}
			target := freeTarget(t, backends.UDP, tt.addr)
			target.External = netip.MustParseAddrPort(tt.external)
			var serving sync.WaitGroup
			serving.Go(func() {
				b := make([]byte, 1000)
				for {
					n, from, err := server.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					if from.Port() == target.Internal.Port() {
						t.Errorf("a request came from the internal port")
					}
					m := stunMessage(t, tt.plain, b[4:20])
					if tt.xorsID { // the address is masked with the ID (RFC 8489 §14.2)
						for i := range 12 {
							m[32+i] ^= byte(i) ^ b[8+i]
						}
					}
					if n == 20 {
						_, _ = server.WriteToUDPAddrPort([]byte("noise"), from)
						_, _ = server.WriteToUDPAddrPort(m, from)
					} else if port := binary.BigEndian.Uint16(b[24:]); port == target.External.Port() {
						catcher.Match(m, netip.MustParseAddrPort(tt.source))
					}
				}
			})
			defer serving.Wait()
			defer server.Close()
			p := STUN(server.LocalAddr().String()).(*stunProber)
			p.flows = &stunFlows{}
			e, err := p.Probe(t.Context(), target, catcher)
			if err != nil || e.Verdict != Reachable || e.From.String() != tt.source || e.External != target.External {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// TestSTUNNotReachable checks servers that cannot be contacted.
func TestSTUNNotReachable(t *testing.T) {
	t.Parallel()
	target := Target{Protocol: backends.UDP, External: stunTarget.External, Internal: netip.AddrPortFrom(loopback4, 40000)}
	for server, want := range map[string]string{
		freeTarget(t, backends.UDP, loopback4).Internal.String(): "refuses the port",
		"[2001:db8::7]:3478": "2001:db8::7",
		"stun..example":      "lookup stun..example", // no resolver is asked for this name
		"stun..example:1":    "lookup stun..example",
	} {
		e, err := STUN(server).Probe(t.Context(), target, &stubCatcher{owner: OwnerProgram})
		if e.Verdict != Unknown || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "stun:"+server) {
			t.Errorf("%s: %v, %v", server, e.Verdict, err)
		}
	}
}
