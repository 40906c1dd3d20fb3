package gatewaytest_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const eventPath = "/evt/0/WANIPConnection"

// event sends a request with these headers to an event URL and returns the response.
func (c igdClient) event(method, path string, headers ...string) string {
	c.t.Helper()
	got, err := c.roundTrip(method + " " + path + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n")
	if err != nil {
		c.t.Errorf("%s %s: %v", method, path, err)
	}
	return got
}

var sidHeader = regexp.MustCompile(`\r\nSID: (uuid:[0-9a-f-]{36})\r\n`)

// sidOf returns the identifier in a response, or an empty text.
func sidOf(response string) string {
	if m := sidHeader.FindStringSubmatch(response); m != nil {
		return m[1]
	}
	return ""
}

// subscriber listens for events.
func subscriber(t *testing.T, at string) *net.TCPListener {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", at)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout))
	return ln.(*net.TCPListener)
}

// nextEvent accepts a connection, and returns its request and its source.
func nextEvent(t *testing.T, ln *net.TCPListener) (r *http.Request, body string, from netip.AddrPort) {
	t.Helper()
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	if r, err = http.ReadRequest(bufio.NewReader(conn)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	return r, string(b), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
}

func TestUPnPEvents(t *testing.T) {
	t.Parallel()
	gw, _ := startIPv6(t, gatewaytest.Config{External: netip.MustParseAddr("203.0.113.7")})
	for _, tt := range []struct{ url, host, path, want string }{
		{gw.UPnP().DescriptionURL(), "127.0.0.1", eventPath, "<ExternalIPAddress>203.0.113.7</ExternalIPAddress>"},
		{gw.UPnP().DescriptionURL6(), "::1", "/evt/0/WANIPv6FirewallControl", "<FirewallEnabled>1</FirewallEnabled>"},
	} {
		c := igdClient{t: t, gw: gw, from: tt.host, to: hostPort(t, tt.url)}
		if !strings.Contains(c.get("/rootDesc.xml"), "<eventSubURL>"+tt.path+"<") {
			t.Errorf("%s is not in the description", tt.path)
		}
		ln := subscriber(t, net.JoinHostPort(tt.host, "0"))
		response := c.event("SUBSCRIBE", tt.path, "CALLBACK: <http://"+ln.Addr().String()+"/a?b>", "NT: upnp:event", "TIMEOUT: Second-60")
		sid := sidOf(response)
		if statusLine(response) != "200 OK" || sid == "" || !strings.Contains(response, "\r\nTIMEOUT: Second-1800\r\n") {
			t.Fatalf("%q", response)
		}
		r, body, from := nextEvent(t, ln)
		if r.Method != "NOTIFY" || r.RequestURI != "/a?b" || r.Host != ln.Addr().String() || from.Addr().Unmap() != netip.MustParseAddr(tt.host) ||
			!strings.Contains(body, "<e:propertyset ") || !strings.Contains(body, tt.want) {
			t.Errorf("%+v %q from %v", r, body, from)
		}
		for name, want := range map[string]string{"NT": "upnp:event", "NTS": "upnp:propchange", "SID": sid, "SEQ": "0"} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		for _, step := range []struct{ method, want string }{
			{"SUBSCRIBE", "200 OK"}, {"UNSUBSCRIBE", "200 OK"}, {"SUBSCRIBE", "412 Precondition Failed"}, {"UNSUBSCRIBE", "412 Precondition Failed"},
		} {
			if got := c.event(step.method, tt.path, "SID: "+sid); statusLine(got) != step.want {
				t.Errorf("%s: %q, want %s", step.method, got, step.want)
			}
		}
	}
	if got := gw.Stats().Requests; got["upnp subscribe"] != 6 || got["upnp unsubscribe"] != 4 {
		t.Errorf("%v", got)
	}
}

// TestUPnPEventRefusals checks the subscriptions that are refused, above all those whose
// callback is another host.
func TestUPnPEventRefusals(t *testing.T) {
	t.Parallel()
	const nt = "NT: upnp:event"
	ln := subscriber(t, "127.0.0.1:0")
	good := "CALLBACK: <http://" + ln.Addr().String() + "/>"
	for name, tt := range map[string]struct {
		events quirks.Events
		path   string
		header []string
		want   string
	}{
		"another path":      {path: "/evt/0/Other", header: []string{good, nt}, want: "404 Not Found"},
		"no callback":       {header: []string{nt}, want: "412 Precondition Failed"},
		"no NT":             {header: []string{good}, want: "412 Precondition Failed"},
		"another NT":        {header: []string{good, "NT: upnp:rootdevice"}, want: "412 Precondition Failed"},
		"another host":      {header: []string{"CALLBACK: <http://127.0.0.2:80/>", nt}, want: "412 Precondition Failed"},
		"a name":            {header: []string{"CALLBACK: <http://localhost:80/>", nt}, want: "412 Precondition Failed"},
		"no port":           {header: []string{"CALLBACK: <http://127.0.0.1/>", nt}, want: "412 Precondition Failed"},
		"no brackets":       {header: []string{"CALLBACK: http://127.0.0.1:80/", nt}, want: "412 Precondition Failed"},
		"https":             {header: []string{"CALLBACK: <https://127.0.0.1:80/>", nt}, want: "412 Precondition Failed"},
		"unknown SID":       {header: []string{"SID: uuid:1"}, want: "412 Precondition Failed"},
		"status 404":        {events: quirks.Events{Status: 404}, header: []string{good, nt}, want: "404 Not Found"},
		"status 501":        {events: quirks.Events{Status: 501}, header: []string{good, nt}, want: "501 Not Implemented"},
		"undescribed":       {events: quirks.Events{Undescribed: true}, header: []string{good, nt}, want: "200 OK"},
		"silent":            {events: quirks.Events{Silent: true}, header: []string{good, nt}, want: "200 OK"},
		"accepted, for all": {header: []string{good, nt}, want: "200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Events: tt.events})
			if tt.path == "" {
				tt.path = eventPath
			}
			if got := c.event("SUBSCRIBE", tt.path, tt.header...); statusLine(got) != tt.want || (sidOf(got) != "") != (tt.want == "200 OK") {
				t.Errorf("%q", got)
			}
			described := strings.Contains(c.get("/rootDesc.xml"), "<eventSubURL>"+eventPath+"<")
			if described == tt.events.Undescribed {
				t.Errorf("event URL in the description: %v", described)
			}
		})
	}
}

// TestUPnPEventsSilent checks that the quirk sends no event: the next event at the port comes from
// another gateway.
func TestUPnPEventsSilent(t *testing.T) {
	t.Parallel()
	ln := subscriber(t, "127.0.0.1:0")
	for path, events := range map[string]quirks.Events{"/silent": {Silent: true}, "/refused": {Status: 501}} {
		startIGD(t, igdQuirks{Events: events}).event("SUBSCRIBE", eventPath, "CALLBACK: <http://"+ln.Addr().String()+path+">", "NT: upnp:event")
	}
	startIGD(t, igdQuirks{}).event("SUBSCRIBE", eventPath, "CALLBACK: <http://"+ln.Addr().String()+"/other>", "NT: upnp:event")
	if r, _, _ := nextEvent(t, ln); r.RequestURI != "/other" {
		t.Errorf("an event for %s", r.RequestURI)
	}
}

// TestUPnPEventsLimit checks that the number of subscriptions is limited, and that a gateway
// with subscribers that do not answer can be closed.
func TestUPnPEventsLimit(t *testing.T) {
	t.Parallel()
	ln := subscriber(t, "127.0.0.1:0")
	c := startIGD(t, igdQuirks{})
	for i := range 65 {
		want := "200 OK"
		if i == 64 {
			want = "503 Service Unavailable"
		}
		if got := c.event("SUBSCRIBE", eventPath, "CALLBACK: <http://"+ln.Addr().String()+"/>", "NT: upnp:event"); statusLine(got) != want {
			t.Fatalf("subscription %d: %q", i, got)
		}
	}
	conn, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = c.gw.Close()
}
