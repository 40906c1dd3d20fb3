package attack_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
)

// respondEndlessly writes start once, and then repeats more until the client closes
// the connection.
func respondEndlessly(start, more string) func(*device, net.Conn, string) {
	return func(d *device, conn net.Conn, _ string) {
		err := d.write(conn, []byte(start))
		b := []byte(strings.Repeat(more, 32<<10/len(more)))
		for err == nil {
			err = d.write(conn, b)
		}
	}
}

// maxRead is a limit for the bytes of an endless response that one client and the
// kernel's buffers can take. A naive client reads more.
const maxRead = naiveReadLimit / 2

// TestEndlessDescription checks a description without end, sent from the gateway's
// own address. The backend stops reading at its limit, and still finds the gateway.
func TestEndlessDescription(t *testing.T) {
	for name, respond := range map[string]func(*device, net.Conn, string){
		"body":             respondEndlessly("HTTP/1.1 200 OK\r\n\r\n<root>", "<device>"),
		"announced length": respondEndlessly("HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n<root>", "x"),
		"chunk extensions": respondEndlessly("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 8<<10)+"\r\n \r\n"),
		"chunks":           respondEndlessly("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "400\r\n"+strings.Repeat("<device>", 128)+"\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, gatewaytest.Config{})
			d := startDevice(t, gatewayAddr, respond)
			location := fmt.Sprintf("http://%v/", d.addr)
			if n := naiveRead(t, d.addr); n < naiveReadLimit {
				t.Fatalf("the naive client read %d bytes: the attack has no effect", n)
			}
			forged := startSSDPResponder(t, gatewayAddr, location)
			before := d.written.Load()
			checkNoLeaks(t, func() {
				b := newShortSearchBackend(t, forged)
				err := b.Probe(t.Context())
				if !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrNoReply) { // ErrNoReply if the short search ends first
					t.Errorf("Probe: %v, want ErrMalformed", err)
				}
				_ = b.Close()
				b = newBackend(t, forged, gw.SSDP())
				checkMaps(t, gw, b)
				_ = b.Close()
			})
			if n := d.written.Load() - before; n > 2*maxRead {
				t.Errorf("two clients took %d bytes", n)
			}
		})
	}
}

// respondSlowly writes start, and then one byte every 5 ms until the client closes
// the connection.
func respondSlowly(d *device, conn net.Conn, start string) {
	err := d.write(conn, []byte(start))
	for tick := time.NewTicker(5 * time.Millisecond); err == nil; <-tick.C {
		err = d.write(conn, []byte(" "))
		d.slowBytes.Add(1)
	}
}

// TestSlowResponse checks a response that arrives byte by byte. A call ends with
// the caller's context, not when the response is complete. This also holds if the
// description arrived quickly.
func TestSlowResponse(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	for name, slow := range map[string]func(request string) bool{
		"description": func(string) bool { return true },
		"responses":   func(request string) bool { return strings.HasPrefix(request, "POST") },
	} {
		t.Run(name, func(t *testing.T) {
			d := startDevice(t, attacker, func(d *device, conn net.Conn, request string) {
				if slow(request) {
					respondSlowly(d, conn, "HTTP/1.1 200 OK\r\n\r\n<root>")
					return
				}
				_ = d.write(conn, httpOK(descriptionOf("", "/ctl")))
			})
			forged := startSSDPResponder(t, attacker, fmt.Sprintf("http://%v/", d.addr))
			// A naive client waits as long as bytes arrive: each byte restarts its
			// timeout.
			if n := naiveReadSlow(t, d.addr); n < 50 {
				t.Fatalf("the naive client stopped after %d bytes: the attack has no effect", n)
			}
			const maxBytes = 700
			errTimeout := errors.New("test timeout")
			checkNoLeaks(t, func() {
				b := newBackend(t, forged)
				ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errTimeout)
				defer cancel()
				before := d.slowBytes.Load()
				if _, err := b.Map(ctx, webRequest); !errors.Is(err, errTimeout) {
					t.Errorf("Map: %v, want the cause of the context's end", err)
				}
				if n := d.slowBytes.Load() - before; n > maxBytes { // one byte every 5 ms
					t.Errorf("Map took %d bytes of a slow response: it continued after its context ended", n)
				}
				_ = b.Close()
				b = newShortSearchBackend(t, forged)
				// A description is enough for a usable device: it need not report its status.
				if err := b.Probe(t.Context()); errors.Is(err, backends.ErrNoReply) != (name == "description") {
					t.Errorf("Probe: %v", err)
				}
				_ = b.Close()
				b = newBackend(t, forged, gw.SSDP())
				checkMaps(t, gw, b)
				_ = b.Close()
			})
			gw.Restart(gatewaytest.RestartOptions{Silent: true})
		})
	}
}

// naiveReadSlow reads with a deadline for each read, which never expires.
func naiveReadSlow(t *testing.T, at netip.AddrPort) (n int) {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\n\r\n"))
	b := make([]byte, 1<<10)
	for n < 50 {
		_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
		got, err := conn.Read(b)
		if n += got; err != nil {
			return n
		}
	}
	return n
}

// naiveExpandEntities replaces entities as an XML parser that supports entities
// does, and returns the length of the text. It stops when the text has limit bytes.
func naiveExpandEntities(document string, limit int) int {
	var names, texts []string
	for _, line := range strings.Split(document, "<!ENTITY ")[1:] {
		name, rest, _ := strings.Cut(line, ` "`)
		text, _, _ := strings.Cut(rest, `"`)
		names, texts = append(names, name), append(texts, text)
	}
	body := "&" + names[len(names)-1] + ";"
	for i := len(names) - 1; i >= 0 && len(body) < limit; i-- {
		body = strings.ReplaceAll(body, "&"+names[i]+";", texts[i])
	}
	return len(body)
}

// naiveDepth returns how deep a recursive parser would recurse in the document.
func naiveDepth(document string) (deepest int) {
	d := xml.NewDecoder(strings.NewReader(document))
	for depth := 0; ; {
		token, err := d.RawToken()
		if err != nil {
			return deepest
		}
		switch token.(type) {
		case xml.StartElement:
			depth++
			deepest = max(deepest, depth)
		case xml.EndElement:
			depth--
		}
	}
}

// entityBomb returns a document of about 1 KB that has gigabytes of text after
// entity expansion.
func entityBomb() string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><!DOCTYPE root [<!ENTITY a0 "` + strings.Repeat("ha", 50) + `">`)
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&b, `<!ENTITY a%d "%s">`, i, strings.Repeat(fmt.Sprintf("&a%d;", i-1), 10))
	}
	_, rest, _ := strings.Cut(strings.Replace(descriptionOf("", "/ctl"), "Router", "&a9;", 1), "?>")
	return b.String() + "]>" + rest
}

// TestXMLBombs parses small descriptions that need much memory or stack in a parser
// that supports all of XML.
func TestXMLBombs(t *testing.T) {
	deep := strings.Repeat("<device>", 20000)
	if n := naiveExpandEntities(entityBomb(), 8<<20); n < 8<<20 {
		t.Fatalf("the naive parser has %d bytes: the attack has no effect", n)
	}
	if n := naiveDepth(deep); n < 20000 {
		t.Fatalf("the naive parser is %d deep: the attack has no effect", n)
	}
	base, _ := url.Parse("http://127.0.0.2/")
	refused := map[string]bool{"nesting": true, "many elements": true, "many devices": true}
	for name, document := range map[string]string{
		"many devices":            "<root>" + strings.Repeat("<device></device>", 15000),
		"entities":                entityBomb(),
		"external file":           `<!DOCTYPE root [<!ENTITY f SYSTEM "file:///etc/passwd">]>` + strings.Replace(descriptionOf("", "/ctl"), "Router", "&f;", 1),
		"nesting":                 "<root>" + deep,
		"many elements":           "<root>" + strings.Repeat("<a/>", 60000),
		"many attributes":         "<root " + strings.Repeat(`a="" `, 50000) + ">",
		"long name":               "<root><" + strings.Repeat("a", 250000) + "/>",
		"long text":               "<root><device><friendlyName>" + strings.Repeat("a", 250000) + "</friendlyName>",
		"unclosed markup":         "<root><![CDATA[" + strings.Repeat("]", 250000),
		"comments":                "<root><!--" + strings.Repeat("-- --", 50000),
		"nested doctypes":         "<!DOCTYPE " + strings.Repeat("<", 250000),
		"character codes":         "<root><device><friendlyName>" + strings.Repeat("&#x41;", 40000),
		"processing instructions": "<root>" + strings.Repeat("<?x y?>", 35000),
	} {
		before := allocated()
		d, err := upnp.ParseDescription([]byte(document), base)
		// Elements in 256 KB of markup take about 100 bytes each.
		if n := allocated() - before; n > 64<<20 {
			t.Errorf("%s: %d bytes allocated for %d bytes of markup", name, n, len(document))
		}
		if err == nil && (len(d.FriendlyName) > 256 || strings.Contains(d.FriendlyName, "haha") || strings.Contains(d.FriendlyName, "root:")) {
			t.Errorf("%s: FriendlyName is %.80q", name, d.FriendlyName)
		}
		if refused[name] && !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
		if err != nil && !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
