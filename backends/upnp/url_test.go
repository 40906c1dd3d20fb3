package upnp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

func TestRewriteLocation(t *testing.T) {
	lan := netip.MustParsePrefix("192.168.1.0/24")
	onLink := func(a netip.Addr) bool {
		return lan.Contains(a) || a.IsLinkLocalUnicast() || a.IsLoopback()
	}
	const gw, at = "192.168.1.1", "192.168.1.1:1900"
	for _, tt := range []struct{ location, from, gateway, want string }{
		{"http://192.168.1.1:5000/rootDesc.xml", at, gw, "http://192.168.1.1:5000/rootDesc.xml"},
		{"http://192.168.1.1:5000/rootDesc.xml", "192.168.1.1:40000", gw, "http://192.168.1.1:5000/rootDesc.xml"},
		{" HTTP://192.168.1.1/a?b#c ", at, gw, "http://192.168.1.1:80/a?b"},
		{"http://192.168.1.1:5000", at, gw, "http://192.168.1.1:5000/"},
		{"http://[::1]:1900/rootDesc.xml", at, gw, "http://192.168.1.1:1900/rootDesc.xml"},
		{"http://127.0.0.1:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://0.0.0.0:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://10.9.9.9:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://8.8.8.8:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://router.lan:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://[fe80::1%3]:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://[fe80::1%3]:5000/", "[fe80::1%eth0]:1900", "fe80::1%eth0", "http://[fe80::1%25eth0]:5000/"},
		{"http://[fe80::1%253]:5000/", "[fe80::1%eth0]:1900", "fe80::1%eth0", "http://[fe80::1%25eth0]:5000/"},
		{"http://[fe80::1]:5000/", "[fe80::1%eth0]:1900", gw, "http://[fe80::1%25eth0]:5000/"},
		{"http://192.168.1.1:5000/", "192.168.1.2:1900", gw, "http://192.168.1.1:5000/"},
		{"http://192.168.1.3:5000/", "192.168.1.2:1900", gw, "http://192.168.1.2:5000/"},
		{"http://192.168.1.2:5000/", "[::ffff:192.168.1.2]:1900", gw, "http://192.168.1.2:5000/"},
		{"http://192.168.1.2:5000/", "192.168.1.2:1900", "", "http://192.168.1.2:5000/"},
		{"http://10.0.0.1:5000/", "10.0.0.1:1900", "10.0.0.1", "http://10.0.0.1:5000/"}, // not on link, but it is the gateway
		{"http://127.0.0.1:5000/", "127.0.0.1:1900", "127.0.0.1", "http://127.0.0.1:5000/"},
		{"http://127.0.0.5:5000/", "127.0.0.2:1900", "127.0.0.1", "http://127.0.0.2:5000/"},
		{"http://127.0.0.1:5000/", "127.0.0.1:1900", gw, ""},
		{"http://10.0.0.1:5000/", "10.0.0.1:1900", gw, ""},
		{"http://192.168.1.1:5000/", "0.0.0.0:1900", gw, ""},
		{"http://192.168.1.1:5000/", "239.255.255.250:1900", gw, ""},
		{"https://192.168.1.1/x", at, gw, ""},
		{"file:///etc/passwd", at, gw, ""},
		{"http:opaque", at, gw, ""},
		{"/rootDesc.xml", at, gw, ""},
		{"", at, gw, ""},
		{"http://", at, gw, ""},
		{"http://a:b@192.168.1.1/x", at, gw, ""},
		{"http://@192.168.1.1/x", at, gw, ""},
		{"http://192.168.1.1:0/x", at, gw, ""},
		{"http://192.168.1.1:65536/x", at, gw, ""},
		{"http://192.168.1.1:x/x", at, gw, ""},
		{"http://192.168.1.1/a\r\nb", at, gw, ""},
		{"http://192.168.1.1/" + strings.Repeat("x", 2000), at, gw, ""},
	} {
		gateway, _ := netip.ParseAddr(tt.gateway)
		got, err := rewriteLocation(tt.location, netip.MustParseAddrPort(tt.from), gateway, onLink)
		if got != tt.want || (tt.want == "") != errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%q from %s: %q, %v; want %q", tt.location, tt.from, got, err, tt.want)
		}
	}
	if got, err := rewriteLocation(location, netip.AddrPort{}, netip.MustParseAddr(gw), onLink); err == nil {
		t.Errorf("without a source address: %q", got)
	}
}
