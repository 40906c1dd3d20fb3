package cli

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
)

// TestListenersRemark checks what map says about the program that is to listen on a port.
func TestListenersRemark(t *testing.T) {
	t.Parallel()
	lan, loopback := netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("127.0.0.1")
	granted := func(s spec, ports ...uint16) grantedMapping {
		g := grantedMapping{spec: &s}
		for _, port := range ports {
			g.granted = append(g.granted, backends.Mapping{Protocol: backends.TCP, Internal: netip.AddrPortFrom(lan, port)})
		}
		return g
	}
	for _, tt := range []struct {
		name  string
		addrs []netip.Addr
		err   error
		all   []grantedMapping
		want  string
	}{
		{"no program", nil, nil, []grantedMapping{granted(spec{}, 8080)}, "No program on this host listens on tcp port 8080 yet.\n"},
		{"no program, several", nil, nil, []grantedMapping{granted(spec{}, 80), granted(spec{}, 443, 444)}, "No program on this host listens on 80/tcp, 443/tcp and 444/tcp yet.\n"},
		{"only this host", []netip.Addr{loopback, netip.IPv6Loopback()}, nil, []grantedMapping{granted(spec{}, 8080)}, "The program on tcp port 8080 listens only on a loopback address: the gateway cannot reach it.\n"},
		{"a program", []netip.Addr{loopback, netip.IPv4Unspecified()}, nil, []grantedMapping{granted(spec{}, 8080)}, ""},
		{"unknown", nil, errors.ErrUnsupported, []grantedMapping{granted(spec{}, 8080)}, ""},
		{"another host", nil, nil, []grantedMapping{granted(spec{to: lan}, 8080)}, ""},
	} {
		var stdout, stderr bytes.Buffer
		a := newApp(&stdout, &stderr)
		a.listeners = func(backends.Protocol, uint16) ([]netip.Addr, error) { return tt.addrs, tt.err }
		a.printListeners(tt.all)
		if stderr.String() != tt.want || stdout.Len() > 0 {
			t.Errorf("%s: %q, want %q", tt.name, &stderr, tt.want)
		}
	}
}
