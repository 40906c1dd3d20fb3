package labtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// faultyReflector is a reflector that errs or lies.
type faultyReflector struct {
	name  string // the path of its URL
	serve func(*faultyRequest)
	// says is a part of the detail of the evidence. If it is empty, a connection arrives in spite of the
	// fault if the port is reachable, and the evidence says so.
	says string
	// blocked is a part of the detail if the port is not reachable. Empty: the same as says.
	blocked string
	isSlow  bool // it belongs to the long form
}

// faultyRequest is a request to a faultyReflector.
type faultyRequest struct {
	w      http.ResponseWriter
	probe  dialback.Probe
	client netip.Addr // the source of the request
	second netip.Addr // the second address of this host
	number int        // of the request, for this reflector and this protocol
}

// line returns a line of the reply.
func (f *faultyRequest) line(state string) dialback.Line {
	return dialback.Line{State: state, Protocol: f.probe.Protocol, Port: f.probe.Port, Address: f.client}
}

// announce says that a connection begins.
func (f *faultyRequest) announce(address netip.Addr, from netip.AddrPort) {
	line := f.line(dialback.StateDialing)
	line.Address, line.From = address, from
	f.say(line)
}

// end says the result.
func (f *faultyRequest) end(result dialback.Outcome) {
	line := f.line(dialback.StateDone)
	line.Result = result
	f.say(line)
}

// pretend says that a connection took place.
func (f *faultyRequest) pretend(result dialback.Outcome) {
	f.announce(f.client, netip.MustParseAddrPort("45.45.45.2:40000"))
	time.Sleep(100 * time.Millisecond) // as a reflector does between its announcement and the connection
	f.end(result)
}

func (f *faultyRequest) say(line dialback.Line) {
	_ = json.NewEncoder(f.w).Encode(line)
	f.flush()
}

func (f *faultyRequest) flush() { _ = http.NewResponseController(f.w).Flush() }

// write writes text to the reply.
func (f *faultyRequest) write(text string) { _, _ = io.WriteString(f.w, text); f.flush() }

// call returns what a reflector has to do.
func (f *faultyRequest) call() dialback.Call {
	return dialback.Call{Protocol: f.probe.Protocol, To: netip.AddrPortFrom(f.client, f.probe.Port), Nonce: f.probe.Nonce, Want: f.probe.Want}
}

// connect makes the call, after it has announced this address and source, or those of the call if they
// are zero values.
func (f *faultyRequest) connect(c dialback.Call, address netip.Addr, source netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	result, _, _ := c.Do(ctx, func(from netip.AddrPort) {
		if !address.IsValid() {
			address = f.client
		}
		if source.IsValid() {
			from = source
		}
		f.announce(address, from)
	})
	if result != dialback.Echoed {
		result = dialback.Silent
	}
	f.end(result)
}

// strange returns an address of the same family as the client's that belongs to another host.
func (f *faultyRequest) strange() netip.Addr {
	if f.client.Is4() {
		return netip.MustParseAddr("45.45.45.77")
	}
	return netip.MustParseAddr("2a0c:7777:1::77")
}

const (
	notReached = "it has not reached "
	incomplete = "did not complete its reply"
	noReply    = "replies with something else than a reflector"
	lateSource = "only at the end of its reply"
)

// faultyReflectors are the faults.
var faultyReflectors = []faultyReflector{
	// It errs.
	{name: "500", says: `HTTP status 500: "out of order`, serve: func(f *faultyRequest) { http.Error(f.w, "out of order", http.StatusInternalServerError) }},
	{name: "429", says: `HTTP status 429: "too many", and allows the next one in "17" s`, serve: func(f *faultyRequest) {
		f.w.Header().Set("Retry-After", "17")
		f.w.WriteHeader(http.StatusTooManyRequests)
		f.write(`{"error":"too many"}`)
	}},
	{name: "long-refusal", says: "HTTP status 403", serve: func(f *faultyRequest) {
		f.w.Header().Set("Retry-After", strings.Repeat("9", 10000))
		f.w.WriteHeader(http.StatusForbidden)
		f.write(strings.Repeat("no", 10000))
	}},
	{name: "redirect", says: "HTTP status 307", serve: func(f *faultyRequest) {
		f.w.Header().Set("Location", "http://"+netip.AddrPortFrom(f.second, faultyPort).String()+"/redirected"+dialback.ProbePath)
		f.w.WriteHeader(http.StatusTemporaryRedirect)
	}},
	{name: "page", says: noReply, serve: func(f *faultyRequest) { f.write("<!doctype html><p>Welcome to your hotel</p>\n") }},
	{name: "other-json", says: noReply, serve: func(f *faultyRequest) { f.write("[1,2,3]\n") }},
	{name: "bytes", says: noReply, serve: func(f *faultyRequest) { f.write("\x00\xff\x1b[31m\x07\u202e\n") }},
	{name: "nothing", says: incomplete, serve: func(*faultyRequest) {}},
	{name: "half-line", says: noReply, serve: func(f *faultyRequest) { f.write(`{"state":"dialing","protocol":"tc`) }},
	{name: "aborted", says: "ends early", serve: func(f *faultyRequest) {
		f.announce(f.client, netip.MustParseAddrPort("45.45.45.2:40000"))
		panic(http.ErrAbortHandler)
	}},
	{name: "announced-only", says: incomplete, serve: func(f *faultyRequest) { f.announce(f.client, netip.MustParseAddrPort("45.45.45.2:40000")) }},
	{name: "endless-line", says: "ends early", serve: func(f *faultyRequest) { f.repeat(strings.Repeat("a", 1<<10)) }},
	{name: "endless-lines", says: incomplete, serve: func(f *faultyRequest) { f.repeat(strings.Repeat("\n", 1<<10)) }},
	{name: "other-port", says: incomplete, serve: func(f *faultyRequest) { f.probe.Port++; f.pretend(dialback.Echoed) }},
	{name: "silent-server", isSlow: true, says: "does not answer", serve: func(*faultyRequest) { time.Sleep(maxWait) }},
	{name: "slow-lines", isSlow: true, says: "ends early", serve: func(f *faultyRequest) {
		for range maxWait / time.Second {
			f.write("\n")
			time.Sleep(time.Second)
		}
	}},

	// It lies.
	{name: "echoed", says: `says "echoed", but nothing arrived`, serve: func(f *faultyRequest) { f.pretend(dialback.Echoed) }},
	{name: "connected", says: `says "connected"`, serve: func(f *faultyRequest) { f.pretend(dialback.Connected) }},
	{name: "silent", says: notReached, serve: func(f *faultyRequest) { f.pretend(dialback.Silent) }},
	{name: "refused", says: notReached, serve: func(f *faultyRequest) { f.pretend(dialback.Refused) }},
	{name: "failed", says: "says that it cannot connect", serve: func(f *faultyRequest) { f.pretend(dialback.Failed) }},
	{name: "long-result", says: notReached, serve: func(f *faultyRequest) { f.pretend(dialback.Outcome(strings.Repeat("x", 3000))) }},
	{name: "no-time", says: lateSource, serve: func(f *faultyRequest) {
		f.announce(f.client, netip.MustParseAddrPort("45.45.45.2:40000"))
		f.end(dialback.Silent)
	}},
	{name: "wrong-nonce", says: notReached, serve: func(f *faultyRequest) {
		c := f.call()
		c.Nonce = reach.NewNonce()
		f.connect(c, netip.Addr{}, netip.AddrPort{})
	}},
	{name: "wrong-source", serve: func(f *faultyRequest) { f.connect(f.call(), netip.Addr{}, netip.MustParseAddrPort("8.8.8.8:53")) }, blocked: notReached},
	{name: "source-of-the-lan", serve: func(f *faultyRequest) {
		f.connect(f.call(), netip.Addr{}, netip.MustParseAddrPort("192.168.77.66:53"))
	}, blocked: notReached},
	{name: "from-another-address", says: notReached, serve: func(f *faultyRequest) {
		c := f.call()
		c.From = f.second
		f.connect(c, netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr("45.45.45.2"), 40000))
	}},
	{name: "address-of-another-host", says: "but at the address ", blocked: "it sees this host at ", serve: func(f *faultyRequest) {
		f.connect(f.call(), f.strange(), netip.AddrPort{})
	}},
	{name: "private-address", says: "but at the address 10.1.1.1", blocked: "it sees this host at 10.1.1.1", serve: func(f *faultyRequest) {
		f.connect(f.call(), netip.MustParseAddr("10.1.1.1"), netip.AddrPort{})
	}},
	{name: "own-address", says: "which is not an address of the internet", blocked: "it sees this host at ", serve: func(f *faultyRequest) {
		own := netip.MustParseAddr("45.45.45.2")
		if f.client.Is6() {
			own = netip.MustParseAddr("2a0c:7777:2::2")
		}
		f.connect(f.call(), own, netip.AddrPort{})
	}},
	{name: "no-announcement", says: "did not say at which address", blocked: incomplete, serve: func(f *faultyRequest) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _, _ = f.call().Do(ctx, nil)
		f.end(dialback.Echoed)
	}},
	{name: "late-announcement", blocked: lateSource, serve: func(f *faultyRequest) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var source netip.AddrPort
		_, _, _ = f.call().Do(ctx, func(from netip.AddrPort) { source = from })
		f.announce(f.client, source)
		f.end(dialback.Silent)
	}},
}

// repeat writes a text until the client closes the connection.
func (f *faultyRequest) repeat(text string) {
	for {
		if _, err := io.WriteString(f.w, text); err != nil {
			return
		}
	}
}

// faultyPort is the port of the faulty reflectors.
const faultyPort = 8101

// faultyArgs are the arguments of faultyProgram.
type faultyArgs struct {
	Addresses       []netip.AddrPort `json:"addresses"`
	Second, Second6 netip.Addr
}

// faultyProgram runs all faultyReflectors, and one that lies from the second request on.
var faultyProgram = lab.Func("faulty reflectors", func(p *lab.Proc) {
	var args faultyArgs
	p.Args(&args)
	mux := http.NewServeMux()
	handle := func(name string, serve func(*faultyRequest)) {
		requests := map[string]int{}
		mux.HandleFunc("/"+name+dialback.ProbePath, func(w http.ResponseWriter, r *http.Request) {
			var request dialback.Request
			if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Probes) != 1 {
				p.Fatalf("the request is not valid: %v: %+v", err, request)
			}
			client := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap()
			f := &faultyRequest{w: w, probe: request.Probes[0], client: client, second: args.Second}
			if client.Is6() {
				f.second = args.Second6
			}
			key := fmt.Sprint(f.probe.Protocol, client) // the test sends one request after the other
			requests[key]++
			f.number = requests[key]
			serve(f)
		})
	}
	for _, f := range faultyReflectors {
		handle(f.name, f.serve)
	}
	handle("turncoat", func(f *faultyRequest) {
		if f.number == 1 {
			f.connect(f.call(), netip.Addr{}, netip.AddrPort{})
			return
		}
		f.pretend(dialback.Silent)
	})
	handle("redirected", func(*faultyRequest) { p.Fatal("the client follows a redirect") })
	serve(p, args.Addresses, func(ln net.Listener) error { return (&http.Server{Handler: mux, ReadHeaderTimeout: maxWait}).Serve(ln) })
})

// TestReachReflectorFaults measures a port by reflectors that err, lie, or are away. The port
// is first reachable, and then not. None of them makes it seem reachable, and none that never reached it
// makes it seem unreachable.
func TestReachReflectorFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []reachCell{{network: "tcp"}, {network: "udp"}, {network: "tcp", six: true}, {network: "udp", six: true}} {
		isShort := c.network == "udp" == c.six
		if !isShort && !longChecks {
			continue
		}
		name := c.network + " over IPv" + c.version()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if isShort {
				lab.Scenario(t, "reach: reflectors that err, lie or are away, "+name)
			}
			testReachReflectorFaults(t, c)
		})
	}
}

// startFaultyReflectors starts faultyProgram and returns the URL of a reflector over IPv6 or not.
func startFaultyReflectors(t *testing.T, l *reachLab, h *reachHelpers) (url func(name string, six bool) string) {
	t.Helper()
	addresses := h.at(faultyPort)
	l.home.Wan.Start(t, faultyProgram, faultyArgs{
		append(addresses, netip.AddrPortFrom(h.second, faultyPort), netip.AddrPortFrom(h.second6, faultyPort)), h.second, h.second6,
	}).Expect(nil)
	return func(name string, six bool) string { return urls(addresses, "/"+name)[six] }
}

// TestReachReflectorFaultsService measures a port of another program by reflectors that err or lie. That
// program gets no nonce, so only the announced source identifies a connection.
func TestReachReflectorFaultsService(t *testing.T) {
	t.Parallel()
	if !longChecks {
		t.Skip("GOFORWARD_CHECKS=all runs it")
	}
	for _, six := range []bool{false, true} {
		c := reachCell{network: "tcp", six: six}
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			l := newReachLab(t, lab.Uplink{})
			l.open(t, "service")
			url := startFaultyReflectors(t, l, startHelpers(t, l.home, noHelpers))
			l.want(t, c, "another program", "reflector:"+url("turncoat", six), fromOutside)
			for name, says := range map[string]string{
				"wrong-source": notReached, "source-of-the-lan": "is behind a NAT and connects from ", "from-another-address": notReached, "silent": notReached,
				"no-announcement": incomplete, "late-announcement": lateSource, "connected": `says "connected"`,
				"echoed": "but nothing arrived", "address-of-another-host": "but at the address ", "page": noReply,
			} {
				l.want(t, c, "another program", "reflector:"+url(name, six), unknown, says, url(name, six))
			}
		})
	}
}

func testReachReflectorFaults(t *testing.T, c reachCell) {
	t.Helper()
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	h := startHelpers(t, l.home, func(string) bool { return false })
	all := startFaultyReflectors(t, l, h)
	measure := func(url, when, says, want string) {
		t.Helper()
		r := l.program.call(reachCall{Op: "verify", Network: c.network, Target: l.targets[c.six], Probers: []string{"reflector:" + url}, Within: 2 * maxWait}, nil)
		e := r.Evidence[1]
		t.Logf("%s, %s: %s, %.2f s: %s", url, when, e, r.Took.Seconds(), e.Detail)
		if e.String() != want || e.Method != url || !strings.Contains(e.Detail, url) || !strings.Contains(e.Detail, says) || len(e.Detail) > 1000 {
			t.Errorf("%s, %s: %s, want %s with %q: %s", url, when, e, want, says, e.Detail)
		}
		isTrue := want == fromOutside
		if provesInternet(r) != isTrue || !isTrue && want != r.Verdict {
			t.Errorf("%s, %s: FALSE %s: %+v", url, when, r.Verdict, r)
		}
	}
	url := func(name string) string { return all(name, c.six) }

	// These are away. An address of the other family cannot be used.
	away := map[string]string{all("500", !c.six): "no address of the family of the mapping"}
	local := urls([]netip.AddrPort{netip.AddrPortFrom(h.first, 9), netip.AddrPortFrom(h.first6, 9)}, "")[c.six]
	away[local] = "refused"
	away[urls([]netip.AddrPort{netip.MustParseAddrPort("45.45.45.250:8100"), netip.MustParseAddrPort("[2a0c:7777:2::250]:8100")}, "")[c.six]] = "no route to host"
	away[strings.Replace(url("tls"), "http", "https", 1)] = "server gave HTTP response to HTTPS client"
	if longChecks {
		l.home.Wan.Rule(t, "input", "tcp dport 8109 drop")
		away["http://helper.invalid:8100"] = "" // the name server does not answer
		away[urls([]netip.AddrPort{netip.AddrPortFrom(h.first, 8109), netip.AddrPortFrom(h.first6, 8109)}, "")[c.six]] = "does not answer"
	}
	for u, says := range away {
		measure(u, "reachable", says, unknown)
	}
	for _, f := range faultyReflectors {
		switch {
		case f.isSlow && !longChecks:
		case f.says == "":
			measure(url(f.name), "reachable", "arrived, from ", fromOutside)
		default:
			measure(url(f.name), "reachable", f.says, unknown)
		}
	}
	measure(url("turncoat"), "reachable", "arrived, from ", fromOutside)
	// Its word counts now, but its name is there.
	measure(url("turncoat"), "reachable, and it lies now", `reached `+l.targets[c.six].External.String()+` before: it says "silent"`, unreachable)

	providerBlocks(t, l)
	if l.answers(t, c.network, c.six) {
		t.Fatal("the port is reachable")
	}
	for _, f := range faultyReflectors {
		switch says := f.blocked; {
		case f.isSlow, f.says == "" && !longChecks:
		case f.says == "": // it has reached the port before
			measure(url(f.name), "blocked", "", map[bool]string{true: unreachable, false: unknown}[f.blocked == notReached])
		case says == "":
			measure(url(f.name), "blocked", f.says, unknown)
		default:
			measure(url(f.name), "blocked", says, unknown)
		}
	}
}
