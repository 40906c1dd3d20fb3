package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/reach"
)

// The results of simulated measurements.
var (
	listening     = reach.Evidence{Method: reach.MethodListening, Verdict: reach.Reachable, Level: reach.LevelListening, Detail: "a program listens on tcp port 8080"}
	notListening  = reach.Evidence{Method: reach.MethodListening, Verdict: reach.Unreachable, Level: reach.LevelListening, Detail: "no program on this host listens on tcp port 8080"}
	fromInternet  = reach.Result{Verdict: reach.Reachable, Proven: reach.LevelInternet, Reason: "reachable from the internet", Evidence: []reach.Evidence{listening}}
	notForwarded  = reach.Result{Verdict: reach.Unreachable, Proven: reach.LevelListening, Reason: "a connection through wwan0 did not arrive", Evidence: []reach.Evidence{listening}}
	withoutServer = reach.Result{Verdict: reach.Unreachable, Reason: notListening.Detail, Evidence: []reach.Evidence{notListening}}
	firewalled    = reach.Result{Verdict: reach.Unreachable, Reason: "the router's connection did not arrive", Evidence: []reach.Evidence{listening, {Method: "router", Verdict: reach.Unreachable, Level: reach.LevelLAN}}}
	upToRouter    = reach.Result{Proven: reach.LevelRouter, Reason: "the router forwards the port", Evidence: []reach.Evidence{listening}}
)

// measuring returns a simulated measurement: the result depends on the internal port.
func measuring(results map[uint16]reach.Result) func(*app) {
	return func(a *app) {
		a.measure = func(_ context.Context, c *portCheck, _ ...reach.Prober) (reach.Result, error) {
			return results[c.target.Internal.Port()], nil
		}
	}
}

// TestVerdictCodes checks the exit codes and stdout of verify and map --verify. The worst verdict
// of several ports counts.
func TestVerdictCodes(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0", "--backend", "natpmp"}
	results := map[uint16]reach.Result{8081: fromInternet, 8082: notForwarded, 8083: upToRouter}
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{"verify", "8081"}, 0, "tcp 45.45.45.1:8081 reachable\n"},
		{[]string{"verify", "8082"}, 7, "tcp 45.45.45.1:8082 unreachable\n"},
		{[]string{"verify", "8083/udp"}, 8, "udp 45.45.45.1:8083 unknown\n"},
		{[]string{"verify", "8081/tcp", "8083/both"}, 8, "tcp 45.45.45.1:8081 reachable\ntcp 45.45.45.1:8083 unknown\nudp 45.45.45.1:8083 unknown\n"},
		{[]string{"verify", "8081/tcp", "8083/tcp", "8082"}, 7, "tcp 45.45.45.1:8081 reachable\ntcp 45.45.45.1:8083 unknown\ntcp 45.45.45.1:8082 unreachable\n"},
		{[]string{"verify", "8082/tcp", "8083/tcp"}, 7, "tcp 45.45.45.1:8082 unreachable\ntcp 45.45.45.1:8083 unknown\n"},
		{[]string{"map", "8081", "--verify"}, 0, "45.45.45.1:8081\ntcp 45.45.45.1:8081 reachable\n"},
		{[]string{"map", "8082", "--verify"}, 7, "45.45.45.1:8082\ntcp 45.45.45.1:8082 unreachable\n"},
		{[]string{"map", "8083/both", "--verify=router"}, 8, "45.45.45.1:8083\ntcp 45.45.45.1:8083 unknown\nudp 45.45.45.1:8083 unknown\n"},
	} {
		if got := run(t, measuring(results), append(tt.args, at...)...); got.code != tt.code || got.stdout != tt.stdout {
			t.Errorf("%q: exit code %d, want %d; stdout %q, want %q\n%s", tt.args, got.code, tt.code, got.stdout, tt.stdout, got.stderr)
		}
	}
}

// TestVerifyReachable measures, with connections from an outside host of the gateway, a requested
// mapping and an entry of the table.
func TestVerifyReachable(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the table of sockets is not read on this system")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, name := range []string{"natpmp", "upnp"} {
		gw := router(t, gatewaytest.Config{Protocols: []string{name}})
		args := []string{"verify", port, "-g", gw.Addr().String(), "--announce", "127.0.0.1:0", "--notify", "127.0.0.1:0", "--backend", name}
		external := netip.MustParseAddrPort(gw.External().String() + ":" + port)
		if name == "upnp" {
			args = append(args, "--igd-url", gw.UPnP().DescriptionURL())
			external = netip.AddrPortFrom(gw.External(), 80)
			addEntry(t, gw, 80, ln.Addr().String())
		}
		got := run(t, func(a *app) {
			a.measure = func(ctx context.Context, c *portCheck, _ ...reach.Prober) (reach.Result, error) {
				return measurePort(ctx, c, gw.Prober())
			}
		}, args...)
		if got.code != exitDone || got.stdout != fmt.Sprintf("tcp %v reachable\n", external) || !strings.Contains(got.stderr, "  gatewaytest  yes ") {
			t.Errorf("%s: exit code %d, %q\n%s", name, got.code, got.stdout, got.stderr)
		}
	}
}

// TestVerifyInterrupted checks that an interrupted measurement prints no verdict.
func TestVerifyInterrupted(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	ctx, interrupt := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr)
	a.measure = func(context.Context, *portCheck, ...reach.Prober) (reach.Result, error) {
		interrupt()
		return upToRouter, nil
	}
	code := a.run(ctx, []string{"verify", "8081", "-g", gw.Addr().String(), "--announce", "127.0.0.1:0", "--backend", "natpmp"})
	if code != exitOther || stdout.Len() > 0 || !strings.Contains(stderr.String(), "goforward: interrupted\n") {
		t.Errorf("exit code %d, stdout %q\n%s", code, &stdout, &stderr)
	}
}

// TestVerdictText checks what verify says about a verdict: it claims no more than is proven, and
// recommends a phone only if the port is free for it.
func TestVerdictText(t *testing.T) {
	t.Parallel()
	uplinks := []discover.Gateway{{Interface: "wwan0"}, {Interface: "eth0"}}
	const notChecked = "Access from the internet was not checked: goforward verify 8080"
	free := upToRouter
	free.Evidence = []reach.Evidence{notListening}
	reflector := []via{{viaReflector, "https://example.net"}}
	for name, tt := range map[string]struct {
		protocol backends.Protocol
		uplinks  []discover.Gateway
		via      []via
		result   reach.Result
		want     string
	}{
		"router":            {backends.TCP, uplinks, nil, upToRouter, "Proven up to your router. " + notChecked + " --via if:wwan0, ssh:HOST, the URL of a reflector, or phone while the program is stopped"},
		"only one uplink":   {backends.TCP, uplinks[1:], nil, upToRouter, "Proven up to your router. " + notChecked + " --via ssh:HOST, the URL of a reflector, or phone while the program is stopped"},
		"UDP":               {backends.UDP, uplinks[1:], nil, upToRouter, "Proven up to your router. " + notChecked + "/udp --via stun:HOST, ssh:HOST, or the URL of a reflector while the program is stopped"},
		"UDP, no program":   {backends.UDP, uplinks, nil, free, "Proven up to your router. " + notChecked + "/udp --via stun:HOST, if:wwan0, ssh:HOST, or the URL of a reflector"},
		"firewall":          {backends.TCP, uplinks[1:], nil, reach.Result{Proven: reach.LevelLAN}, "Proven from your router to this host. " + notChecked + " --via ssh:HOST, the URL of a reflector, or phone while the program is stopped"},
		"listening":         {backends.TCP, uplinks[1:], nil, reach.Result{Proven: reach.LevelListening}, "Proven only that a program listens. " + notChecked + " --via ssh:HOST, the URL of a reflector, or phone while the program is stopped"},
		"no program":        {backends.TCP, uplinks, nil, withoutServer, "No program on this host listens on tcp port 8080. " + notChecked + " --via phone, if:wwan0, ssh:HOST, or the URL of a reflector"},
		"reachable":         {backends.TCP, uplinks, nil, fromInternet, "Reachable from the internet."},
		"unreachable, path": {backends.TCP, uplinks, []via{{viaInterface, "wwan0"}}, notForwarded, "A connection through wwan0 did not arrive."},
		"unknown, path":     {backends.TCP, uplinks, []via{{viaInterface, "wwan0"}}, upToRouter, "The router forwards the port."},
		"unknown, helper":   {backends.TCP, uplinks, reflector, upToRouter, "The router forwards the port."},
	} {
		a := newApp(io.Discard, io.Discard)
		a.currentRoute = func(*settings) route { return route{iface: "eth0"} }
		a.defaultRoutes = func() (all, used []discover.Gateway, err error) { return tt.uplinks, nil, nil }
		c := &portCheck{spec: &spec{}, result: tt.result, mapping: backends.Mapping{Protocol: tt.protocol, Internal: netip.MustParseAddrPort("192.168.1.7:8080")}}
		if got := a.verdictText(c, &verifyFlags{via: tt.via}); got != tt.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, tt.want)
		}
	}
}

// TestVerifyEvery checks that verify --every prints changes only, and that a port that was
// reachable is mapped again once if it is not reachable any more.
func TestVerifyEvery(t *testing.T) {
	t.Parallel()
	yes, no, unknown := fromInternet, notForwarded, upToRouter
	for name, tt := range map[string]struct {
		results  []reach.Result // of the measurements
		noRepair bool
		failing  int // number of repairs that fail
		verdicts string
		repairs  int
		code     int
	}{
		"never proven":           {[]reach.Result{unknown, no, no}, false, 0, "unknown unreachable", 0, 7},
		"stays reachable":        {[]reach.Result{yes, yes, yes}, false, 0, "reachable", 0, 0},
		"repaired":               {[]reach.Result{yes, no, yes, yes}, false, 0, "reachable unreachable reachable", 1, 0},
		"repair does not help":   {[]reach.Result{yes, no, no, no, no}, false, 0, "reachable unreachable unreachable", 1, 7},
		"unknown in between":     {[]reach.Result{yes, unknown, no, no}, false, 0, "reachable unknown unreachable unreachable", 1, 7},
		"again later":            {[]reach.Result{yes, no, no, yes, no, yes}, false, 0, "reachable unreachable unreachable reachable unreachable reachable", 2, 0},
		"repair fails at first":  {[]reach.Result{yes, no, no, yes}, false, 1, "reachable unreachable reachable", 2, 0},
		"no repair":              {[]reach.Result{yes, no, no}, true, 0, "reachable unreachable", 0, 7},
		"no program any more":    {[]reach.Result{yes, withoutServer, withoutServer}, false, 0, "reachable unreachable", 0, 7},
		"firewall of this host":  {[]reach.Result{yes, firewalled, firewalled}, false, 0, "reachable unreachable", 0, 7},
		"unknown after the last": {[]reach.Result{yes, unknown}, false, 0, "reachable unknown", 0, 8},
	} {
		synctest.Test(t, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			a := newApp(&stdout, &stderr)
			a.currentRoute = func(*settings) route { return route{} }
			a.defaultRoutes = func() (all, used []discover.Gateway, err error) { return nil, nil, nil }
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			repairs, begun := 0, time.Now()
			var measured atomic.Int64
			var first []reach.Prober
			a.measure = func(_ context.Context, _ *portCheck, probers ...reach.Prober) (reach.Result, error) {
				if first == nil {
					first = probers
				}
				if !slices.Equal(probers, first) || len(probers) == 0 { // a prober remembers the endpoints that it reached
					t.Errorf("%s: other probers", name)
				}
				return tt.results[measured.Add(1)-1], nil
			}
			a.repairMapping = func(context.Context, *portCheck) error {
				if repairs++; repairs <= tt.failing {
					return errors.New("no reply")
				}
				return nil
			}
			ended := make(chan error, 1)
			v := &verifyFlags{via: []via{{viaInterface, "wwan0"}}, every: time.Minute, noRepair: tt.noRepair}
			c := &portCheck{spec: &spec{}, mapping: backends.Mapping{Protocol: backends.TCP, External: netip.MustParseAddrPort("45.45.45.1:8080")}}
			go func() { ended <- a.measureRounds(ctx, []*portCheck{c}, v) }()
			for synctest.Wait(); int(measured.Load()) < len(tt.results); synctest.Wait() {
				time.Sleep(time.Minute)
			}
			interrupt()
			err := <-ended
			rounds := len(tt.results) - (tt.repairs - tt.failing)
			if took := time.Since(begun); took != time.Duration(rounds-1)*time.Minute {
				t.Errorf("%s: took %v for %d rounds", name, took, rounds)
			}
			var verdicts []string
			for line := range strings.Lines(stdout.String()) {
				verdicts = append(verdicts, strings.TrimSpace(strings.TrimPrefix(line, "tcp 45.45.45.1:8080 ")))
			}
			if got := strings.Join(verdicts, " "); got != tt.verdicts || repairs != tt.repairs {
				t.Errorf("%s: verdicts %q, want %q; %d repairs, want %d", name, got, tt.verdicts, repairs, tt.repairs)
			}
			if code := a.reportError(ctx, err); code != tt.code {
				t.Errorf("%s: exit code %d, want %d", name, code, tt.code)
			}
		})
	}
}

// repair repairs an entry of a gateway's table, and returns the requests that change the table.
func repair(t *testing.T, gw *gatewaytest.Gateway, m backends.Mapping) (ops []string, err error) {
	t.Helper()
	a := newApp(io.Discard, io.Discard)
	a.memoryFile = func() (string, error) { return "", errors.New("none") }
	a.settings.gateway, a.settings.igd = gw.Addr(), gw.UPnP().DescriptionURL()
	a.settings.backends, a.settings.notify = []string{"upnp"}, netip.MustParseAddrPort("127.0.0.1:0")
	gw.ResetStats()
	err = a.repairEntry(t.Context(), &portCheck{spec: &spec{}, mapping: m})
	for _, q := range gw.Requests() {
		if q.Op == "map" || q.Op == "unmap" {
			ops = append(ops, q.Op)
		}
	}
	return ops, err
}

// addEntry adds a permanent entry to a gateway's table. It returns it as an entry to this host.
func addEntry(t *testing.T, gw *gatewaytest.Gateway, port uint16, to string) backends.Mapping {
	t.Helper()
	e := gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort(to), External: netip.AddrPortFrom(gw.External(), port), Description: "my game",
	}
	if err := gw.AddMapping(e); err != nil {
		t.Fatal(err)
	}
	return backends.Mapping{
		Protocol: e.Protocol, Internal: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.Internal.Port()), External: e.External, Description: e.Description, Lifetime: backends.Forever,
	}
}

// TestRepairEntry checks that a repair deletes an entry of the gateway's table and adds the same
// one, and that it changes nothing that another host has.
func TestRepairEntry(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: 1}}})
	m := addEntry(t, gw, 80, "127.0.0.1:8080")
	before := gw.Table()
	if ops, err := repair(t, gw, m); err != nil || !slices.Equal(ops, []string{"unmap", "map"}) {
		t.Errorf("requests %q, %v", ops, err)
	}
	after := gw.Table()
	if len(after) != 1 || after[0].Remaining != backends.Forever || after[0].Description != "my game" || after[0].Internal != before[0].Internal || after[0].External != before[0].External {
		t.Errorf("table %+v, want %+v", after, before)
	}
	m.External = netip.AddrPortFrom(gw.External(), 81) // another program has deleted it
	if ops, err := repair(t, gw, m); err != nil || !slices.Equal(ops, []string{"map"}) {
		t.Errorf("without an entry: requests %q, %v", ops, err)
	}
	if ops, err := repair(t, gw, addEntry(t, gw, 82, "192.0.2.9:80")); !errors.Is(err, backends.ErrConflict) || len(ops) > 0 {
		t.Errorf("entry of another host: requests %q, %v", ops, err)
	}
}

// TestRepairPermanent checks that a permanent entry stays as it is if the gateway would add it only
// for a limited time.
func TestRepairPermanent(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: 2}}})
	m := addEntry(t, gw, 80, "127.0.0.1:8080")
	ops, err := repair(t, gw, m)
	if !errors.Is(err, backends.ErrUnsupported) || len(ops) > 0 || len(gw.Table()) != 1 {
		t.Errorf("%v: requests %q, %v, table %+v", m, ops, err, gw.Table())
	}
}

// TestVia checks the values of --via.
func TestVia(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]via{
		"phone": {viaPhone, ""}, "Phone": {viaPhone, ""}, "if:wwan0": {viaInterface, "wwan0"}, "if:eth0:1": {viaInterface, "eth0:1"},
		"https://example.net": {viaReflector, "https://example.net"}, "HTTP://example.net:8099/": {viaReflector, "http://example.net:8099"},
		"https://example.net/goforward//": {viaReflector, "https://example.net/goforward"}, "http://[2001:db8::1]:80": {viaReflector, "http://[2001:db8::1]:80"},
		"ssh:example.net": {viaSSH, "example.net"}, "SSH:me@my_vps": {viaSSH, "me@my_vps"}, "ssh:me@2001:db8::1": {viaSSH, "me@2001:db8::1"},
		"stun:example.net": {viaSTUN, "example.net"}, "stun:192.0.2.1:3479": {viaSTUN, "192.0.2.1:3479"}, "stun:[2001:db8::1]": {viaSTUN, "[2001:db8::1]"}, "stun:2001:db8::1": {viaSTUN, "2001:db8::1"}, "stun:[2001:db8::1]:3478": {viaSTUN, "[2001:db8::1]:3478"},
	} {
		all, err := new(verifyFlags).addVia(text)
		if err != nil || !slices.Equal(all, []via{want}) {
			t.Errorf("%q: %v, %v, want %v", text, all, err, want)
		}
		if again, err := parseVia(want.String()); err != nil || again != want {
			t.Errorf("%q again: %v, %v", want, again, err)
		}
	}
	for text, want := range map[string]error{
		"": errVia, "if": errVia, "if:": errVia, "phone:": errVia, "phone:x": errVia, "wwan0": errVia, "router": errVia, "example.net": errVia, "ssh": errVia, "stun": errVia, "ftp://example.net": errVia, "stuns:example.net": errVia,
		"https:": errReflector, "https://": errReflector, "http:example.net": errReflector, "https://:80": errReflector, "https://-host": errReflector, "https://example.net?x": errReflector, "https://example.net?": errReflector,
		"https://example.net/#x": errReflector, "https://example.net:99999": errReflector, "https://example.net:0": errReflector, "https://a b": errReflector, "https://example.net:x": errReflector,
		"ssh:": errSSH, "ssh:-oProxyCommand=x": errSSH, "ssh:me@-oProxyCommand=x": errSSH, "ssh:-l@host": errSSH, "ssh:host:22": errSSH, "ssh:a b": errSSH, "ssh://host": errSSH, "ssh:me@": errSSH, "ssh:@host": errSSH, "ssh:$(x)@host": errSSH, "ssh:host;x": errSSH,
		"stun:": errSTUN, "stun::3478": errSTUN, "stun:-host": errSTUN, "stun:host:": errSTUN, "stun:host:0": errSTUN, "stun:host:99999": errSTUN, "stun://host": errSTUN, "stun:2001:db8::1]:1": errSTUN, "stun:0.0.0.0": errSTUN, "https://[::]": errReflector, "ssh:224.0.0.1": errSSH,
	} {
		if all, err := new(verifyFlags).addVia(text); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v, want %v", text, all, err, want)
		}
	}
	for _, kind := range []string{"https://HOST", "http://HOST", "ssh:HOST", "stun:HOST", "if:NAME", "phone"} {
		if !strings.Contains(errVia.Error(), kind) {
			t.Errorf("%q does not list %s", errVia, kind)
		}
	}
	v := verifyFlags{}
	for _, text := range []string{"phone", "if:a", "phone", "if:b", "ssh:c", "stun:d", "http://e/", "http://e"} {
		v.via, _ = v.addVia(text)
	}
	if len(v.via) != 6 {
		t.Errorf("several: %v", v.via)
	}
	a := newApp(io.Discard, io.Discard)
	var names []string
	for _, p := range a.newProbers(&v) {
		names = append(names, p.Name())
	}
	if got := strings.Join(names, " "); !strings.HasPrefix(got, "router hairpin phone path:a path:b ssh:c stun:d ") || len(names) != 8 {
		t.Errorf("probers %q", got)
	}
}

// TestViaToken checks that a URL with a secret is refused without a copy of the secret, and that a
// token that is sent without encryption is reported.
func TestViaToken(t *testing.T) {
	got := run(t, nil, "verify", "8080", "--via", "https://me:Geheimnis@example.net", "--json")
	if want := "goforward: --via: the URL of a reflector has no user name and no password\n  → put the token of the reflector into the environment variable GOFORWARD_REFLECTOR_TOKEN\n"; got.code != exitUsage || got.stderr != want || strings.Contains(got.stdout, "Geheimnis") {
		t.Errorf("exit code %d, %q, %q", got.code, got.stderr, got.stdout)
	}
	var stderr bytes.Buffer
	a := newApp(io.Discard, &stderr)
	for _, token := range []string{"", " Geheimnis\n"} {
		t.Setenv(tokenVariable, token)
		if got := reflectorToken(); got != strings.TrimSpace(token) {
			t.Errorf("token %q: %q", token, got)
		}
		if err := a.checkVia([]via{{viaReflector, "https://example.net"}, {viaReflector, "http://example.net"}}); err != nil {
			t.Error(err)
		}
	}
	if got := stderr.String(); got != "--via http://example.net: the token is sent without encryption.\n" {
		t.Errorf("%q", got)
	}
}

// TestCompleteVia checks the completion of --via: no space follows a value that is not complete.
func TestCompleteVia(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]struct {
		values string
		space  bool
	}{"p": {"phone", true}, "ss": {"ssh:", false}, "st": {"stun:", false}, "h": {"https:// http://", false}, "": {"phone ssh: stun: https:// http://", true}} {
		values, directive := completeVia(nil, nil, prefix)
		values = slices.DeleteFunc(values, func(s string) bool { return strings.HasPrefix(s, "if:") })
		if got := strings.Join(values, " "); got != want.values || (directive&cobra.ShellCompDirectiveNoSpace == 0) != want.space {
			t.Errorf("%q: %q, directive %b", prefix, got, directive)
		}
	}
}

// TestViaInterface checks the error for an interface that does not exist.
func TestViaInterface(t *testing.T) {
	t.Parallel()
	for want, uplinks := range map[string][]discover.Gateway{
		"other interfaces with a default route: lte0 and wlan0": {{Interface: "eth0"}, {Interface: "lte0"}, {Interface: "wlan0"}, {Interface: "lte0"}},
		"this host has no other interface with a default route": {{Interface: "eth0"}},
	} {
		got := run(t, func(a *app) {
			a.currentRoute = func(*settings) route { return route{iface: "eth0"} }
			a.defaultRoutes = func() (all, used []discover.Gateway, err error) { return uplinks, nil, nil }
		}, "verify", "8080", "--via", "if:no-such-interface")
		if got.code != exitUsage || got.stderr != "goforward: --via if:no-such-interface: no such interface\n  → "+want+"\n" {
			t.Errorf("exit code %d, %q", got.code, got.stderr)
		}
	}
}

// TestShowURL checks that the QR code is drawn only on a terminal or on request, and that the
// drawing has all modules of the code, with a light border.
func TestShowURL(t *testing.T) {
	t.Parallel()
	const url = "http://203.0.113.9:8080/AAAAAAAAAAAAAAAAAAAAAA"
	code, err := qr.Encode(url, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ terminal, asked, drawn bool }{{false, false, false}, {true, false, true}, {false, true, true}} {
		var stderr bytes.Buffer
		a := newApp(io.Discard, &stderr)
		a.isTerminal = func() bool { return tt.terminal }
		a.settings.quiet = true // the URL is no remark
		a.showURL(url, tt.asked)
		if !strings.Contains(stderr.String(), "\n  "+url+"\n") || strings.Contains(stderr.String(), "█") != tt.drawn {
			t.Errorf("%+v:\n%s", tt, &stderr)
		}
	}
	for _, color := range []bool{false, true} {
		drawing := drawQR(code, color)
		if color != strings.Contains(drawing, "\x1b[97;40m") {
			t.Errorf("color %v: %q", color, drawing)
		}
		light := map[[2]int]bool{}
		lines := strings.Split(strings.TrimSuffix(regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(drawing, ""), "\n"), "\n")
		for y, line := range lines {
			x := -quietZone
			for _, r := range line {
				light[[2]int{x, 2*y - quietZone}] = r == '█' || r == '▀'
				light[[2]int{x, 2*y - quietZone + 1}] = r == '█' || r == '▄'
				x++
			}
		}
		for y := -quietZone; y < code.Size+quietZone; y++ {
			for x := -quietZone; x < code.Size+quietZone; x++ {
				isBorder := x < 0 || y < 0 || x >= code.Size || y >= code.Size
				if got, drawn := light[[2]int{x, y}]; !drawn || got == code.Black(x, y) || isBorder && !got {
					t.Fatalf("color %v: module %d, %d: light %v, drawn %v", color, x, y, got, drawn)
				}
			}
		}
	}
}

// TestReachedElsewhere checks that verify prints the endpoint at which a port was reached, and not the
// one that the router reports, in a line and in JSON.
func TestReachedElsewhere(t *testing.T) {
	t.Parallel()
	m := backends.Mapping{Protocol: backends.TCP, External: netip.MustParseAddrPort("192.168.9.2:8080"), Internal: netip.MustParseAddrPort("192.168.1.7:8080")}
	same, elsewhere := fromInternet, fromInternet
	proof := reach.Evidence{Method: "ssh:host", Protocol: backends.TCP, External: m.External, Verdict: reach.Reachable, Level: reach.LevelInternet}
	same.Evidence, same.External = []reach.Evidence{listening, proof}, proof.External
	proof.External = netip.MustParseAddrPort("203.0.113.9:8080")
	elsewhere.Evidence, elsewhere.External = []reach.Evidence{listening, proof}, proof.External
	unknown := upToRouter
	proof.Inferred = true
	unknown.Evidence = []reach.Evidence{proof}
	inferred := same
	inferred.Evidence = append([]reach.Evidence{proof}, same.Evidence...) // the first one is about another port
	for _, tt := range []struct {
		result  reach.Result
		line    string
		reached string
	}{
		{same, "tcp 192.168.9.2:8080 reachable\n", ""},
		{elsewhere, "tcp 203.0.113.9:8080 reachable\n", `"reached":{"ip":"203.0.113.9","port":8080},`},
		{unknown, "tcp 192.168.9.2:8080 unknown\n", ""},
		{inferred, "tcp 192.168.9.2:8080 reachable\n", ""},
	} {
		for _, json := range []bool{false, true} {
			var stdout bytes.Buffer
			a := newApp(&stdout, io.Discard)
			a.settings.json = json
			a.printVerified(&portCheck{spec: &spec{}, mapping: m, result: tt.result}, &verifyFlags{via: []via{{viaSSH, "host"}}}, true)
			got := stdout.String()
			if !json && got != tt.line || json && (!strings.Contains(got, `"external":{"ip":"192.168.9.2","port":8080},`+tt.reached+`"internal":`) || !strings.HasSuffix(got, "\n")) {
				t.Errorf("%v: %s", tt.result.Verdict, got)
			}
		}
	}
}

// TestVerifiedRecord checks that the record of one of several ports has only its own evidence.
func TestVerifiedRecord(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("45.45.45.1:8080")
	evidence := func(p backends.Protocol, external netip.AddrPort, method string) reach.Evidence {
		return reach.Evidence{Method: method, Protocol: p, External: external, To: netip.MustParseAddrPort("192.168.1.7:8080")}
	}
	r := verified("verified", backends.Mapping{Protocol: backends.UDP, External: at}, reach.Result{Evidence: []reach.Evidence{
		evidence(backends.TCP, at, "tcp"), evidence(backends.UDP, at, "udp"), evidence(backends.UDP, netip.AddrPortFrom(at.Addr(), 8081), "other port"),
	}})
	if len(r.Evidence) != 1 || r.Evidence[0].Method != "udp" || r.Evidence[0].To != (jsonEndpoint{}) {
		t.Errorf("%+v", r.Evidence)
	}
}

// TestMapMeasuresNothing checks that map without --verify sends nothing to find out what is
// proven.
func TestMapMeasuresNothing(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	got := run(t, func(a *app) {
		a.measure = func(context.Context, *portCheck, ...reach.Prober) (reach.Result, error) {
			t.Error("measured")
			return reach.Result{}, nil
		}
	}, "map", "8080", "-g", gw.Addr().String(), "--announce", "127.0.0.1:0", "--backend", "natpmp")
	if n := strings.Count(got.stderr, "\n"); got.code != exitDone || n != 2 || strings.Count(got.stderr, "\nGranted, not proven: ") != 1 {
		t.Errorf("exit code %d, %d lines\n%s", got.code, n, got.stderr)
	}
}
