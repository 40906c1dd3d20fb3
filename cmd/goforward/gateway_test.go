package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/freeport"
	"github.com/rogpeppe/go-internal/testscript"
)

// testTimeout is a generous timeout: the test takes milliseconds unless it fails.
const testTimeout = 20 * time.Second

var gatewayVerbs = map[string]func(*testscript.TestScript, *gatewaytest.Gateway, []string) error{
	"restart":        gatewayRestart,
	"refuse":         gatewayRefuse,
	"silent":         gatewaySilent,
	"down":           func(_ *testscript.TestScript, gw *gatewaytest.Gateway, _ []string) error { gw.Down(); return nil },
	"occupy":         gatewayOccupy,
	"fill":           gatewayFill,
	"list-fails-at":  gatewayListFailsAt,
	"table":          gatewayTable,
	"requests":       gatewayRequests,
	"reset-requests": func(_ *testscript.TestScript, gw *gatewaytest.Gateway, _ []string) error { gw.ResetStats(); return nil },
	"await":          gatewayAwait,
	"address":        gatewayAddress,
	"visit":          gatewayVisit,
	"delete-all":     gatewayDeleteAll,
}

// gatewayCmd controls the test gateway of a script:
//
//	gateway start [external=ADDR] [max=DURATION] [natpmp] [pcp] [upnp] [third-party] [ipv6]
//	              [wans=N] [no-list] [no-index] [vpn]
//	                                 supports the named protocols; default: natpmp and pcp
//	gateway restart [keep-epoch]     restarts the gateway, with an announcement
//	gateway refuse [natpmp|pcp|upnp] CODE [TIMES]
//	                                 refuses each request for a mapping
//	gateway silent [natpmp|pcp|upnp|map [TIMES]]
//	                                 drops each request, or each request to map or unmap
//	gateway delete-all               prints the requests that delete all mappings
//	gateway down                     closes the port
//	gateway occupy EXTERNAL[:INTERNAL]/PROTO [HOST [DESCRIPTION]]
//	                                 adds a mapping of another host, by default 192.0.2.9;
//	                                 \x41 in the description is a byte
//	gateway fill N                   adds N mappings of another host
//	gateway list-fails-at INDEX      refuses to list the entry with that index
//	gateway table                    prints the table
//	gateway requests                 prints the number of requests of each kind
//	gateway await map|unmap          waits for such a request
//	gateway reset-requests           resets the numbers of requests
//	gateway address ADDR             changes the external address
//	gateway visit PORT/PROTO         sends bytes from outside to a server behind the port
//
// Start sets $GATEWAY, $GATEWAY_PORT, $GATEWAY6, $ANNOUNCE, $NOTIFY, $SSDP, $IGD and $IGD6. If a
// script starts another gateway, its later commands control that gateway.
func gatewayCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: gateway verb …")
	}
	var err error
	if verb := gatewayVerbs[args[0]]; args[0] == "start" {
		err = gatewayStart(ts, args[1:])
	} else if gw, ok := gateways.get(ts); ok && verb != nil {
		err = verb(ts, gw, args[1:])
	} else {
		ts.Fatalf("no gateway, or no verb %q", args[0])
	}
	if neg && err == nil {
		ts.Fatalf("gateway %v succeeded", args)
	}
	if !neg {
		ts.Check(err)
	}
}

func gatewayStart(ts *testscript.TestScript, args []string) error {
	var config gatewaytest.Config
	if err := configure(&config, args); err != nil {
		return err
	}
	gw, err := gatewaytest.Start(config)
	if err != nil {
		return err
	}
	if slices.Equal(config.Protocols, []string{"upnp"}) {
		gw.Down("natpmp", "pcp")
	}
	gateways.set(ts, gw)
	ts.Defer(func() { _ = gw.Close() })
	ts.Setenv("GATEWAY", gw.Addr().String())
	ts.Setenv("GATEWAY_PORT", strconv.Itoa(int(gw.Addr().Port())))
	ts.Setenv("GATEWAY6", gw.Addr6().String())
	ts.Setenv("ANNOUNCE", gw.AnnounceAddr().String())
	ts.Setenv("NOTIFY", gw.NotifyAddr().String())
	ts.Setenv("IGD", gw.UPnP().DescriptionURL())
	ts.Setenv("IGD6", gw.UPnP().DescriptionURL6())
	ssdp := gw.SSDP()
	if !ssdp.IsValid() { // an address without a gateway: the search ends at once
		ssdp = netip.MustParseAddrPort("127.0.0.1:0")
	}
	ts.Setenv("SSDP", ssdp.String())
	return nil
}

// configure parses the arguments of gateway start.
func configure(config *gatewaytest.Config, args []string) (err error) {
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		switch name {
		case "external":
			config.External, err = netip.ParseAddr(text)
		case "max":
			config.MaxLifetime, err = time.ParseDuration(text)
		case "natpmp", "pcp", "upnp":
			config.Protocols = append(config.Protocols, name)
		case "third-party":
			config.Quirks.PCP.ThirdParty, config.Quirks.UPnP.AnyClient = true, true
		case "vpn":
			config.Quirks.NATPMP.VPN = true
		case "ipv6":
			config.Listen6 = netip.MustParseAddrPort("[::1]:0")
		case "wans":
			config.Quirks.UPnP.Description.WANDevices, err = strconv.Atoi(text)
		case "no-list":
			config.Quirks.UPnP.Listing.IndexFails, config.Quirks.UPnP.Listing.NoRange = 401, true
		case "no-index":
			config.Quirks.UPnP.Listing.IndexFails = 401
		default:
			err = fmt.Errorf("no option %q", arg)
		}
		if err != nil {
			return err
		}
	}
	if len(config.Protocols) == 0 {
		config.Protocols = []string{"natpmp", "pcp"}
	}
	return nil
}

func gatewayRestart(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: slices.Equal(args, []string{"keep-epoch"})})
	return nil
}

func gatewayAddress(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	addr, err := netip.ParseAddr(args[0])
	gw.SetExternal(addr)
	return err
}

func isService(name string) bool { return name == "natpmp" || name == "pcp" || name == "upnp" }

func gatewayRefuse(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) (err error) {
	service := ""
	if isService(args[0]) {
		service, args = args[0], args[1:]
	}
	f := gatewaytest.Fault{Match: func(q gatewaytest.Request) bool {
		return q.Op == "map" && (service == "" || q.Service == service)
	}}
	if f.Result, err = strconv.Atoi(args[0]); err == nil && len(args) > 1 {
		f.Times, err = strconv.Atoi(args[1])
	}
	gw.Inject(f)
	return err
}

func gatewaySilent(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) (err error) {
	f := gatewaytest.Fault{Drop: true}
	if len(args) > 0 {
		f.Match = func(q gatewaytest.Request) bool {
			return q.Service == args[0] || args[0] == "map" && (q.Op == "map" || q.Op == "unmap")
		}
	}
	if len(args) > 1 {
		f.Times, err = strconv.Atoi(args[1])
	}
	gw.Inject(f)
	return err
}

// gatewayDeleteAll prints the NAT-PMP requests that delete all mappings: deletions with
// internal port 0 (RFC 6886, section 3.4). The port is in bytes 4 and 5.
func gatewayDeleteAll(ts *testscript.TestScript, gw *gatewaytest.Gateway, _ []string) error {
	for _, q := range gw.Requests() {
		if q.Service == "natpmp" && q.Op == "unmap" && (q.Raw[4] == 0 && q.Raw[5] == 0) {
			fmt.Fprintf(ts.Stdout(), "%x\n", q.Raw)
		}
	}
	return nil
}

func gatewayAwait(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	_, err := gw.AwaitRequests(ctx, 1, func(q gatewaytest.Request) bool { return q.Op == args[0] })
	return err
}

func parsePort(s string) (p backends.Protocol, port uint16, err error) {
	number, name, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	p, err = backends.ParseProtocol(name)
	return p, uint16(n), err
}

func gatewayRequests(ts *testscript.TestScript, gw *gatewaytest.Gateway, _ []string) error {
	var lines []string
	for name, n := range gw.Stats().Requests {
		lines = append(lines, fmt.Sprintf("%s: %d\n", name, n))
	}
	slices.Sort(lines)
	_, err := io.WriteString(ts.Stdout(), strings.Join(lines, ""))
	return err
}

// visiting lets one script serve at a time: all scripts use the same ports of one host.
var visiting sync.Mutex

// gatewayVisit starts a server at the internal port of the mapping and connects to it from
// outside. It fails if the server does not return the bytes of the visitor.
func gatewayVisit(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	p, port, err := parsePort(args[0])
	if err != nil {
		return err
	}
	internal := netip.MustParseAddrPort("127.0.0.1:0")
	for _, e := range gw.Table() {
		if e.Protocol == p && e.External.Port() == port {
			internal = e.Internal
		}
	}
	network := p.String()
	visiting.Lock()
	defer visiting.Unlock()
	stop, err := serveEcho(network, internal)
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	conn, err := gw.Dial(ctx, network, netip.AddrPortFrom(gw.External(), port).String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	const text = "is the port open?"
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != text {
		return fmt.Errorf("received %q: %w", b, err)
	}
	return nil
}

// serveEcho returns to the first visitor the data that it sends.
func serveEcho(network string, at netip.AddrPort) (stop func(), err error) {
	if network == "udp" {
		pc, err := net.ListenPacket(network, at.String())
		if err != nil {
			return nil, err
		}
		go func() {
			b := make([]byte, 100)
			if n, from, err := pc.ReadFrom(b); err == nil {
				_, _ = pc.WriteTo(b[:n], from)
			}
		}()
		return func() { _ = pc.Close() }, nil
	}
	ln, err := net.Listen(network, at.String())
	if err != nil {
		return nil, err
	}
	go func() {
		if conn, err := ln.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	return func() { _ = ln.Close() }, nil
}

// listenCmd implements listen ADDR. A program listens at this TCP address until the script ends. Its
// port is in $PORT.
func listenCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen addr")
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(args[0], "0"))
	ts.Check(err)
	ts.Defer(func() { _ = ln.Close() })
	ts.Setenv("PORT", strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
}

// unusedCmd implements unused NAME. It sets $NAME to a port on which no program listens.
func unusedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unused name")
	}
	at, err := freeport.UDP()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(int(at.Port())))
}

// exitsCmd implements exits CODE PROGRAM ARG…. It runs the program, which must exit with the
// code. The commands stdout and stderr then match the output of the program.
func exitsCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program arg…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// asksCmd implements asks PROTOCOL PROGRAM ARG…. The program must send requests of this protocol,
// and no others. If the gateway needs more than 10 ms for a reply, a program also asks the other
// protocols, and may remember another one. Therefore, only one of many runs must do so, each with
// the same memory: a loaded machine is seldom so slow in one run, and never in all of them.
func asksCmd(ts *testscript.TestScript, neg bool, args []string) {
	gw, ok := gateways.get(ts)
	if neg || !ok || len(args) < 2 {
		ts.Fatalf("usage: asks protocol program arg…, after gateway start")
	}
	const runs = 20
	memory := filepath.Join(ts.Getenv("XDG_STATE_HOME"), "goforward", "gateways.json")
	before := ts.ReadFile(memory)
	for range runs {
		ts.Check(os.WriteFile(memory, []byte(before), 0o600))
		gw.ResetStats()
		ts.Check(ts.Exec(args[1], args[2:]...))
		isOnly := true
		for name := range gw.Stats().Requests {
			isOnly = isOnly && strings.HasPrefix(name, args[0]+" ")
		}
		if isOnly && len(gw.Stats().Requests) > 0 {
			return
		}
	}
	ts.Fatalf("requests of other protocols in %d runs: %v", runs, gw.Stats().Requests)
}

// otherHost is another host of the network.
var otherHost = netip.MustParseAddr("192.0.2.9")

// gatewayOccupy parses EXTERNAL[:INTERNAL]/PROTO [HOST [DESCRIPTION]].
func gatewayOccupy(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	numbers, protocol, _ := strings.Cut(args[0], "/")
	externalText, internalText, both := strings.Cut(numbers, ":")
	if !both {
		internalText = "9"
	}
	p, external, err := parsePort(externalText + "/" + protocol)
	if err != nil {
		return err
	}
	_, internal, err := parsePort(internalText + "/" + protocol)
	if err != nil {
		return err
	}
	host, description := otherHost, ""
	if len(args) > 1 {
		if host, err = netip.ParseAddr(args[1]); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		if description, err = strconv.Unquote(`"` + args[2] + `"`); err != nil {
			return err
		}
	}
	return gw.AddMapping(gatewaytest.Entry{
		Protocol: p, External: netip.AddrPortFrom(gw.External(), external),
		Internal: netip.AddrPortFrom(host, internal), Description: description,
	})
}

func gatewayFill(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	n, err := strconv.ParseUint(args[0], 10, 8)
	for i := range uint16(n) {
		if err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 20000+i),
			Internal: netip.AddrPortFrom(otherHost, 1+i),
		}); err != nil {
			return err
		}
	}
	return err
}

func gatewayListFailsAt(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	index := "<NewPortMappingIndex>" + args[0] + "<"
	gw.Inject(gatewaytest.Fault{Result: 606, Match: func(q gatewaytest.Request) bool {
		return q.Op == "list" && strings.Contains(string(q.Raw), index)
	}})
	return nil
}

func gatewayTable(ts *testscript.TestScript, gw *gatewaytest.Gateway, _ []string) error {
	_, err := io.WriteString(ts.Stdout(), tableText(gw))
	return err
}

func tableText(gw *gatewaytest.Gateway) string {
	var b strings.Builder
	for _, e := range gw.Table() {
		remaining := "permanent"
		if e.Remaining != backends.Forever {
			remaining = "for " + e.Remaining.Round(time.Minute).String()
		}
		fmt.Fprintf(&b, "%s %v %v → %v %s", e.Service, e.Protocol, e.External, e.Internal, remaining)
		for _, f := range e.Filters {
			fmt.Fprintf(&b, ", from %v port %d", f.Prefix, f.Port)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
