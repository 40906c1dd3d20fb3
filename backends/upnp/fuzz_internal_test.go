package upnp

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/natforward/goforward/backends"
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
		out, err := readOutput(action, response{status: status, body: b})
		var fault *Fault
		if (out == nil) == (err == nil) || err != nil && !errors.As(err, &fault) && !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrNotAuthorized) {
			t.Fatalf("%+v, %v", out, err)
		}
		if list, err := parseListing(listingOutput(string(b))); err != nil && !errors.Is(err, backends.ErrMalformed) || len(list) > 2*maxWindow {
			t.Fatal(list, err)
		}
	})
}

var httpResponses = []string{
	"", "\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200", "HTTP/1.1 100 Continue\n\nHTTP/1.0 500\n\n<s:Envelope></s:Envelope>trailing",
	ok(soapResponse("GetExternalIPAddress", "")), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello", "HTTP/1.1 500 x\r\n<Envelope></Envelope >", "HTTP/1.1 204 x\n\n",
}

// FuzzReadResponse checks that the reader stops within its limits, and that the
// result does not depend on how the bytes arrive.
func FuzzReadResponse(f *testing.F) {
	for _, seed := range httpResponses {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(r io.Reader) (response, error) {
			reader := responseReader{r: bufio.NewReader(r), limit: 1000, root: "Envelope", onOverrun: func() {}}
			return reader.read()
		}
		whole, err := read(strings.NewReader(string(b)))
		if len(whole.body) > 1001 || err == nil && (whole.status < 200 || whole.status > 599) {
			t.Fatalf("%+v", whole)
		}
		if err != nil && !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		slow, slowErr := read(iotest.OneByteReader(strings.NewReader(string(b))))
		if (err == nil) != (slowErr == nil) || slow.status != whole.status {
			t.Fatalf("at once %+v, %v; byte by byte %+v, %v", whole, err, slow, slowErr)
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
