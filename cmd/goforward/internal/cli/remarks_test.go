package cli

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
)

// TestProvenText checks the line of map about what is proven, and about the program that is to
// listen on a port.
func TestProvenText(t *testing.T) {
	t.Parallel()
	lan, loopback := netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("127.0.0.1")
	granted := func(s spec, p backends.Protocol, ports ...uint16) grantedMapping {
		g := grantedMapping{spec: &s}
		for _, port := range ports {
			g.granted = append(g.granted, backends.Mapping{Protocol: p, Internal: netip.AddrPortFrom(lan, port)})
		}
		return g
	}
	one := []grantedMapping{granted(spec{}, backends.TCP, 8080)}
	const firewall, measure = " This host's own firewall must also let it in.", " To measure: goforward verify 8080"
	for _, tt := range []struct {
		name    string
		addrs   []netip.Addr
		err     error
		waiting bool // the program does not run yet
		all     []grantedMapping
		want    string
	}{
		{"no program", nil, nil, false, one, "no program on this host listens on tcp port 8080 yet." + firewall + measure},
		{"only this host", []netip.Addr{loopback, netip.IPv6Loopback()}, nil, false, one, "the program on tcp port 8080 listens only on a loopback address, which the gateway cannot reach." + firewall + measure},
		{"a program", []netip.Addr{loopback, netip.IPv4Unspecified()}, nil, false, one, "a program listens on tcp port 8080, but whether connections arrive was not checked." + firewall + measure},
		{"unknown", nil, errors.ErrUnsupported, false, one, "whether connections arrive was not checked. This host's own firewall must also let tcp port 8080 in." + measure},
		{"run", nil, nil, true, one, "whether connections arrive was not checked. This host's own firewall must also let tcp port 8080 in." + measure},
		{"another host", nil, nil, false, []grantedMapping{granted(spec{to: lan}, backends.TCP, 22)}, "the firewall of 192.168.1.7 must also let tcp port 22 in."},
		{"another protocol", nil, nil, false, []grantedMapping{granted(spec{}, backends.SCTP, 5000)}, "whether connections arrive was not checked. This host's own firewall must also let sctp port 5000 in."},
		{
			"two", nil, errors.ErrUnsupported, false,
			[]grantedMapping{granted(spec{}, backends.TCP, 80), granted(spec{}, backends.TCP, 443)},
			"whether connections arrive was not checked. This host's own firewall must also let these ports in. To measure: goforward verify 80 443/tcp",
		},
		{
			"several", nil, nil, false,
			[]grantedMapping{granted(spec{}, backends.TCP, 80), granted(spec{}, backends.UDP, 443, 444)},
			"no program on this host listens on 80/tcp, 443/udp and 444/udp yet. This host's own firewall must also let these ports in. To measure: goforward verify 80 443/udp 444/udp",
		},
	} {
		a := newApp(io.Discard, io.Discard)
		a.listeners = func(backends.Protocol, uint16) ([]netip.Addr, error) { return tt.addrs, tt.err }
		if got := a.provenText(tt.all, !tt.waiting); got != "Granted, not proven: "+tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
