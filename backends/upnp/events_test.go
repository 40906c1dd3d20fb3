package upnp

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

const testSID = "uuid:5e8b6f6a-1dd1-11b2-8000-000000000001"

// eventClient returns a client of a service with events on the server.
func (s *rawServer) eventClient(t *testing.T, config ClientConfig) *Client {
	t.Helper()
	at := "http://" + s.addr.String()
	c, err := NewClient(Service{Type: ip1, ControlURL: at + "/ctl", EventURL: at + "/evt/IPConn?a"}, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const accepted = "HTTP/1.1 200 OK\r\nSERVER: x\r\nSID: " + testSID + "\r\nTIMEOUT: Second-1800\r\nContent-Length: 0\r\n\r\n"

func TestEventRequests(t *testing.T) {
	s := serveRaw(t, respondWith(accepted))
	c := s.eventClient(t, ClientConfig{})
	for _, timeout := range []time.Duration{time.Minute, 1, 1500 * time.Millisecond} {
		if sid, err := c.Subscribe(t.Context(), "http://127.0.0.1:8080/abc", timeout); sid != testSID || err != nil {
			t.Errorf("%q, %v", sid, err)
		}
	}
	if err := c.Unsubscribe(t.Context(), testSID); err != nil {
		t.Error(err)
	}
	rest := " /evt/IPConn?a HTTP/1.1\r\nHost: " + s.addr.String() + "\r\nUser-Agent: goforward UPnP/1.1\r\n"
	subscribe := "SUBSCRIBE" + rest + "CALLBACK: <http://127.0.0.1:8080/abc>\r\nNT: upnp:event\r\nTIMEOUT: Second-"
	const end = "\r\nConnection: close\r\n\r\n"
	got := s.received()
	for i, want := range []string{subscribe + "60" + end, subscribe + "1" + end, subscribe + "2" + end, "UNSUBSCRIBE" + rest + "SID: " + testSID + end} {
		if i >= len(got) || got[i] != want {
			t.Errorf("request %d: %q, want %q", i, got, want)
		}
	}
}

func TestSubscribeArguments(t *testing.T) {
	s := serveRaw(t, respondWith(accepted))
	c := s.eventClient(t, ClientConfig{})
	for _, callback := range []string{
		"", "/abc", "https://127.0.0.1:80/", "http://localhost:80/", "http://a:b@127.0.0.1:80/", "http://127.0.0.1:0/",
		"http://0.0.0.0:80/", "http://239.255.255.250:1900/", "http://[ff02::c]:1900/", "http://255.255.255.255/",
		"http://192.0.2.1:80/", "http://203.0.113.9/", "http://[2001:db8::1]:80/", "http://[::ffff:192.0.2.1]:80/",
		"http://127.0.0.1:80/?><http://192.0.2.1/", "http://127.0.0.1:80/" + strings.Repeat("x", 2000),
		"http://127.0.0.1:80/\r\nX: y",
	} {
		if sid, err := c.Subscribe(t.Context(), callback, time.Minute); sid != "" || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%q: %q, %v", callback, sid, err)
		}
	}
	if _, err := c.Subscribe(t.Context(), "http://192.0.2.1:80/", time.Minute); !errors.Is(err, netbind.ErrNotHere) {
		t.Error(err)
	}
	for _, timeout := range []time.Duration{0, -1} {
		if sid, err := c.Subscribe(t.Context(), "http://127.0.0.1:80/", timeout); sid != "" || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%v: %q, %v", timeout, sid, err)
		}
	}
	for _, sid := range []string{"", "uuid:1\r\nX: y", "a b", "ü", "\x00", strings.Repeat("x", maxSID+1)} {
		if err := c.Unsubscribe(t.Context(), sid); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%q: %v", sid, err)
		}
	}
	if got := s.received(); len(got) > 0 {
		t.Errorf("sent %q", got)
	}
	without := s.client(t, ip1, ClientConfig{})
	_, err := without.Subscribe(t.Context(), "http://127.0.0.1:80/", time.Minute)
	if errUnsubscribe := without.Unsubscribe(t.Context(), testSID); !errors.Is(err, backends.ErrUnsupported) || !errors.Is(errUnsubscribe, backends.ErrUnsupported) {
		t.Errorf("without events: %v, %v", err, errUnsubscribe)
	}
	if _, err := c.Subscribe(t.Context(), "http://127.0.0.1:80/a<b>", time.Minute); err != nil {
		t.Error(err)
	}
	if got := s.received(); len(got) != 1 || !strings.Contains(got[0], "\r\nCALLBACK: <http://127.0.0.1:80/a%3Cb%3E>\r\n") {
		t.Errorf("sent %q", got)
	}
}

// TestSubscribeResponses checks that responses in any form are understood, and that an
// identifier that would be unsafe in a header is rejected.
func TestSubscribeResponses(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\n"
	for response, want := range map[string]string{
		accepted: testSID,
		"HTTP/1.0 200\nsid:  " + testSID + " \n\n":                  testSID,
		head + "SID: " + testSID + "\r\nX\r\n\r\n<html>body</html>": testSID,
		head + "SID: " + strings.Repeat("x", maxSID) + "\r\n\r\n":   strings.Repeat("x", maxSID),
		head + "SID: " + strings.Repeat("x", maxSID+1) + "\r\n\r\n": "",
		head + "Content-Length: 0\r\n\r\n":                          "",
		head + "SID:\r\n\r\n":                                       "",
		head + "SID: a b\r\n\r\n":                                   "",
		head + "SID: a\r\n X: y\r\n\r\n":                            "", // a folded header
		head + "SID: a\rX: y\r\n\r\n":                               "",
		head + "SID: a\x00\r\n\r\n":                                 "",
		head + "SID: \xfc\r\n\r\n":                                  "",
		head + "SID: " + testSID:                                    "",
		"HTTP/1.1 412 Precondition Failed\r\nSID: x\r\n\r\n":        "",
		"HTTP/1.1 302 Found\r\nLOCATION: /\r\nSID: x\r\n\r\n":       "",
		"garbage\r\nSID: x\r\n\r\n":                                 "",
		strings.Repeat(head+"X: y\r\n", 1000):                       "",
	} {
		s := serveRaw(t, respondWith(response))
		sid, err := s.eventClient(t, ClientConfig{}).Subscribe(t.Context(), "http://127.0.0.1:80/", time.Minute)
		if sid != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%.100q: %q, %v", response, sid, err)
		}
		if got := s.received(); len(got) != 1 {
			t.Errorf("%.100q: sent %q", response, got)
		}
	}
}

func TestSubscribeErrors(t *testing.T) {
	for code, want := range map[int]error{401: backends.ErrNotAuthorized, 404: backends.ErrMalformed, 501: backends.ErrMalformed, 503: backends.ErrMalformed} {
		c := serveRaw(t, respondWith(status(code, "<html></html>"))).eventClient(t, ClientConfig{})
		_, err := c.Subscribe(t.Context(), "http://127.0.0.1:80/", time.Minute)
		errUnsubscribe := c.Unsubscribe(t.Context(), testSID)
		for _, err := range []error{err, errUnsubscribe} {
			if got, ok := errors.AsType[*HTTPError](err); !ok || got.Status != code || !errors.Is(err, want) {
				t.Errorf("%d: %v", code, err)
			}
		}
	}
	if err := serveRaw(t, respondWith("HTTP/1.1 200 OK\r\n\r\n")).eventClient(t, ClientConfig{}).Unsubscribe(t.Context(), testSID); err != nil {
		t.Error(err)
	}
	silent := serveRaw(t, respondAndWait(""))
	if _, err := silent.eventClient(t, ClientConfig{Timeout: 50 * time.Millisecond}).Subscribe(t.Context(), "http://127.0.0.1:80/", time.Minute); !errors.Is(err, backends.ErrNoReply) {
		t.Error(err)
	}
	cause := errors.New("the cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := serveRaw(t, func(conn net.Conn, _ int, _ string) { cancel(cause); waitClosed(conn) })
	if _, err := asked.eventClient(t, ClientConfig{}).Subscribe(ctx, "http://127.0.0.1:80/", time.Minute); !errors.Is(err, cause) {
		t.Error(err)
	}
}
