package upnp

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
)

// FuzzParseDescription checks that any description yields an error or a limited
// number of services, all on the device and valid for a client.
func FuzzParseDescription(f *testing.F) {
	base, err := url.Parse(location)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"", rootDesc, rootDesc[:900], "\ufeff" + rootDesc, strings.ReplaceAll(rootDesc, "/ctl", "http://a:b@[::1]:7/\r\n?\n"),
		strings.ReplaceAll(rootDesc, urlBase, "<URLBase>http://192.168.1.1/</URLBase>"), "<root><device>&#0;\xff<![CDATA[",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDescription(b, base)
		if err != nil {
			if !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		if len(d.Services) == 0 || len(d.Services) > maxServices || len(d.FriendlyName) > maxText {
			t.Fatalf("%+v", d)
		}
		for _, s := range d.Services {
			c, err := NewClient(s, ClientConfig{})
			if err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			for _, e := range c.urls {
				line, _, _ := strings.Cut(string(request{}.encode(e, false)), "\r\n")
				if e.addr.Addr() != d.Host || len(strings.Split(line, " ")) != 3 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Fatalf("%v: %q", e.addr, line)
				}
			}
		}
	})
}

// FuzzReadOutput checks that any response yields output arguments, a fault, an HTTP
// error or a malformed response.
func FuzzReadOutput(f *testing.F) {
	for _, seed := range []string{
		"", soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "203.0.113.7")),
		soapResponse("GetExternalIPAddress", elements("newEXTERNALIPAddress", "<b>x</b>&amp;<c/>")), listing,
		`<SOAP-ENV:Fault><faultCode/><errorCode> -911 </errorCode></SOAP-ENV:Fault>`, "\xff\xfe<Fault", "<s:Envelope><s:Body/></s:Envelope>",
	} {
		f.Add([]byte(seed), true, 200)
		f.Add([]byte(seed), false, 500)
	}
	f.Fuzz(func(t *testing.T, b []byte, noOutput bool, status int) {
		action := "GetExternalIPAddress"
		if noOutput {
			action = "AddPortMapping"
		}
		out, err := readOutput(action, lenient.Response{Status: status, Body: b})
		var fault *Fault
		if (out == nil) == (err == nil) || err != nil && !errors.As(err, &fault) && !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrNotAuthorized) {
			t.Fatalf("%+v, %v", out, err)
		}
		if list, err := parseListing(listingOutput(string(b))); err != nil && !errors.Is(err, backends.ErrMalformed) || len(list) > 2*maxWindow {
			t.Fatal(list, err)
		}
	})
}

// FuzzRewriteLocation checks that a rewritten location is a plain http URL on the
// responding host or on the gateway.
func FuzzRewriteLocation(f *testing.F) {
	for _, seed := range []string{
		"http://192.168.1.1:5000/rootDesc.xml", "http://192.168.1.9/", "HTTP://x:1", "http://[fe80::1%253]:80/", "http://[::1%eth0]/?a#b",
		"https://192.168.1.1/", "http://a:b@192.168.1.1/", "http://192.168.1.1:0/", "http:/x", "//x", "http://\x00/", "http://x:99999/",
		"http://192.168.1.1:80/%0d%0aX:%20y?\r\n", " http://[::ffff:192.168.1.1]:1/ ", "file:///etc/passwd",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	gateway := netip.MustParseAddr("192.168.1.1")
	f.Fuzz(func(t *testing.T, location string, nonGateway bool) {
		from := netip.AddrPortFrom(gateway, 1900)
		if nonGateway {
			from = netip.MustParseAddrPort("192.168.1.66:40000")
		}
		got, err := rewriteLocation(location, from, gateway, func(netip.Addr) bool { return true })
		if err != nil {
			return
		}
		e, err := parseIPURL(got)
		if len(location) < maxURL/3 && err != nil {
			t.Fatalf("%q is %q: %v", location, got, err)
		}
		if u, _ := url.Parse(got); err == nil && (u.Scheme != "http" || u.User != nil || e.addr.Port() == 0 ||
			e.addr.Addr() != gateway && e.addr.Addr() != from.Addr()) {
			t.Fatalf("%q is %q", location, got)
		}
	})
}
