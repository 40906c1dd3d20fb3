package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// somebody is another host of the network.
var somebody = netip.MustParseAddr("192.0.2.9")

// gatewayTake reads EXTERNAL[:INTERNAL]/PROTO [HOST [DESCRIPTION]].
func gatewayTake(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
	numbers, protocol, _ := strings.Cut(args[0], "/")
	outside, inside, both := strings.Cut(numbers, ":")
	if !both {
		inside = "9"
	}
	p, external, err := parsePort(outside + "/" + protocol)
	if err != nil {
		return err
	}
	_, internal, err := parsePort(inside + "/" + protocol)
	if err != nil {
		return err
	}
	host, description := somebody, ""
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
			Internal: netip.AddrPortFrom(somebody, 1+i),
		}); err != nil {
			return err
		}
	}
	return err
}

func gatewayBreaks(_ *testscript.TestScript, gw *gatewaytest.Gateway, args []string) error {
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
		remaining := "ever"
		if e.Remaining != backends.Forever {
			remaining = e.Remaining.Round(time.Minute).String()
		}
		fmt.Fprintf(&b, "%s %v %v → %v for %s", e.Service, e.Protocol, e.External, e.Internal, remaining)
		for _, f := range e.Filters {
			fmt.Fprintf(&b, ", from %v port %d", f.Prefix, f.Port)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
