package gatewaytest

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

const searchSeed = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n" +
	"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"

// addSeed is the body of an AddPortMapping request.
const addSeed = `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:AddPortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewRemoteHost></NewRemoteHost><NewExternalPort>6881</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>6881</NewInternalPort><NewInternalClient>127.0.0.1</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>gomap</NewPortMappingDescription><NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>`

func post(path, action, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nSOAPAction: \"" + action + "\"\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body
}

func itoa(n int) string {
	var b []byte
	for ; n > 0 || b == nil; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

var addRequest = post("/ctl/0/WANIPConnection", "urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping", addSeed)

// TestTruncatedRequests checks that a truncated request cannot be parsed, and that the
// complete request can.
func TestTruncatedRequests(t *testing.T) {
	t.Parallel()
	for n := range len(addRequest) + 1 {
		r, err := readRequest(bufio.NewReaderSize(strings.NewReader(addRequest[:n]), maxHeaderBytes))
		if whole := n == len(addRequest); whole != (err == nil) || string(r.raw) != addRequest[:n] {
			t.Fatalf("%d of %d bytes: %v, read %q", n, len(addRequest), err, r.raw)
		}
	}
	for n := range len(addSeed) {
		// Every truncated body is rejected.
		if _, _, err := parseEnvelope([]byte(addSeed[:n]), "AddPortMapping"); err == nil {
			t.Errorf("%d of %d bytes of a body were accepted", n, len(addSeed))
		}
	}
	for n := range len(searchSeed) - 1 { // the last line may end with LF or CRLF
		if _, ok := parseSearch([]byte(searchSeed[:n])); ok {
			t.Errorf("%d of %d bytes of a search were accepted", n, len(searchSeed))
		}
	}
}

func TestParseEnvelope(t *testing.T) {
	t.Parallel()
	args, spaced, err := parseEnvelope([]byte(addSeed), "AddPortMapping")
	if err != nil || spaced || len(args) != 8 || args["NewProtocol"] != "UDP" || args["NewRemoteHost"] != "" {
		t.Errorf("%v, %v, %v", args, spaced, err)
	}
	for body, want := range map[string]string{
		`<Envelope><Body><a><NewX>1</NewX></a></Body></Envelope>`:                                     "1",
		`<S:Envelope><S:Body><m:a><m:NewX> <![CDATA[<1>]]>&amp;</m:NewX></m:a></S:Body></S:Envelope>`: " <1>&",
		`<Envelope><Header/><Body> <a> <NewX/> </a> </Body></Envelope>`:                               "",
	} {
		args, _, err := parseEnvelope([]byte(body), "a")
		if got, ok := args["NewX"]; err != nil || !ok || got != want {
			t.Errorf("%s: %q, %v", body, args, err)
		}
	}
	deep := strings.Repeat("<a>", 9) + strings.Repeat("</a>", 9)
	for _, body := range []string{
		"", "text", `<Envelope><Body></Body></Envelope>`, `<Envelope><Body><b/></Body></Envelope>`, `<Body><a/></Body>`,
		`<Envelope><Body><a>` + deep + `</a></Body></Envelope>`,
	} {
		if args, _, err := parseEnvelope([]byte(body), "a"); err == nil {
			t.Errorf("%q: %v, want an error", body, args)
		}
	}
}

// TestUPnPTrackAfterListenerClosed checks that a connection is not tracked if its
// listener was closed between the calls of accept and track: closeConns has already run,
// and would not close the connection.
func TestUPnPTrackAfterListenerClosed(t *testing.T) {
	t.Parallel()
	g, err := Start(Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{MovePort: true}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	w, c := g.upnp.httpServers[0], new(net.TCPConn)
	for name, closeListener := range map[string]func(){
		"moved": func() { g.Restart(RestartOptions{Silent: true}) },
		"down":  g.upnp.down,
	} {
		if err := g.Up(); err != nil {
			t.Fatal(err)
		}
		oldListener := w.ln
		if !g.upnp.track(w, oldListener, c) {
			t.Errorf("%s: not tracked before", name)
		}
		closeListener()
		if g.upnp.track(w, oldListener, c) {
			t.Errorf("%s: tracked", name)
		}
	}
}
