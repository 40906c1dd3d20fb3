package gatewaytest

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// fuzzed is a gateway that does not listen.
func fuzzed(t testing.TB, u quirks.UPnP) *Gateway {
	config, err := Config{TableLimit: 3, ManualClock: true, Quirks: quirks.Quirks{UPnP: u}, Listen6: netip.MustParseAddrPort("[::1]:0")}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(config)
	t.Cleanup(g.stop)
	return g
}

const searchSeed = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n" +
	"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"

// addSeed is an action as the standard writes it.
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

// Each cut of a request is one that cannot be read; the whole is done.
func TestTruncatedRequests(t *testing.T) {
	t.Parallel()
	for n := range len(addRequest) + 1 {
		r, err := readRequest(bufio.NewReaderSize(strings.NewReader(addRequest[:n]), maxHeader))
		if whole := n == len(addRequest); whole != (err == nil) || string(r.raw) != addRequest[:n] {
			t.Fatalf("%d of %d bytes: %v, read %q", n, len(addRequest), err, r.raw)
		}
	}
	for n := range len(addSeed) {
		// The last ends may be missing, the arguments not.
		if _, _, err := parseEnvelope([]byte(addSeed[:n]), "AddPortMapping"); err == nil {
			t.Errorf("%d of %d bytes of a body were taken", n, len(addSeed))
		}
	}
	for n := range len(searchSeed) - 1 { // the last line may end in LF or CRLF
		if _, ok := parseSearch([]byte(searchSeed[:n])); ok {
			t.Errorf("%d of %d bytes of a search were taken", n, len(searchSeed))
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

func FuzzUPnPRequest(f *testing.F) {
	for _, seed := range []string{
		addRequest, "GET /rootDesc.xml HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.0\n\n", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
		strings.ReplaceAll(addRequest, "AddPortMapping", "AddAnyPortMapping"),
		post("/ctl/0/WANIPConnection", "urn:schemas-upnp-org:service:WANIPConnection:2#GetListOfPortMappings",
			`<Envelope><Body><GetListOfPortMappings><NewStartPort>1</NewStartPort><NewEndPort>9</NewEndPort><NewProtocol>TCP</NewProtocol><NewManage>1</NewManage><NewNumberOfPorts>0</NewNumberOfPorts></GetListOfPortMappings></Body></Envelope>`),
		post("/ctl/0/WANIPConnection", "urn:schemas-upnp-org:service:WANIPConnection:2#GetGenericPortMappingEntry",
			`<Envelope><Body><GetGenericPortMappingEntry><NewPortMappingIndex>0</NewPortMappingIndex></GetGenericPortMappingEntry></Body></Envelope>`),
		post("/ctl/0/WANIPv6FirewallControl", "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1#AddPinhole",
			`<Envelope><Body><AddPinhole><RemoteHost>::2</RemoteHost><RemotePort>0</RemotePort><InternalClient>::1</InternalClient><InternalPort>80</InternalPort><Protocol>6</Protocol><LeaseTime>60</LeaseTime></AddPinhole></Body></Envelope>`),
	} {
		f.Add([]byte(seed), uint16(0), int16(0))
		f.Add([]byte(seed), uint16(0xffff), int16(725))
	}
	f.Fuzz(func(t *testing.T, b []byte, bits uint16, result int16) {
		on := func(i int) bool { return bits>>i&1 != 0 }
		device := quirks.UPnP{
			AnyClient: on(0), Wire: quirks.Wire{Chunked: on(1), LFOnly: on(2)}, XML: quirks.XML{Latin1: on(3), BOM: on(4)},
			Listing: quirks.Listing{Endless: on(5), RangeCrashes: on(6), RangeEscaped: on(7)},
			Rules:   quirks.Rules{OnePort: on(8), FullSilent: on(9), AddAnyResets: on(10)},
			Demands: quirks.Demands{Compact: on(11), SOAPActionNotLast: on(12), LiteralHost: on(13)}, Version: 1 + int(bits>>14&1),
		}
		g := fuzzed(t, device)
		if result != 0 {
			g.Inject(Fault{Result: int(result), Times: 1, Duplicate: 1})
		}
		for i := range 3 {
			r, err := readRequest(bufio.NewReaderSize(bytes.NewReader(b), maxHeader))
			r.err, r.base = err, "http://127.0.0.1:1"
			r.source = netip.MustParseAddrPort([]string{"127.0.0.1:1", "[::1]:1", "127.0.0.1:1"}[i])
			q := g.upnp.identify(&r)
			replies, _ := g.answerBy(q, func(refuse int) [][]byte {
				b, _ := g.upnp.respond(&r, refuse)
				return datagrams(b)
			})
			if len(replies) > 1 {
				t.Fatalf("%d answers", len(replies))
			}
			for _, reply := range replies {
				if !bytes.HasPrefix(reply, []byte("HTTP/1.1 ")) {
					t.Fatalf("answer %q", reply)
				}
				if bits == 0 {
					wellFormed(t, reply)
				}
			}
			g.Advance(time.Hour)
		}
		for at := range g.table.outside {
			if at.Port() == 0 {
				t.Fatal("port 0 in the table")
			}
		}
	})
}

// wellFormed fails unless the body is XML, whatever was asked.
func wellFormed(t *testing.T, reply []byte) {
	t.Helper()
	_, body, ok := bytes.Cut(reply, []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("answer %q", reply)
	}
	in := xml.NewDecoder(bytes.NewReader(body))
	for {
		_, err := in.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
}

func FuzzSSDP(f *testing.F) {
	for _, seed := range []string{
		"", searchSeed, strings.ReplaceAll(searchSeed, "\r", ""), strings.Replace(searchSeed, "urn:", "ssdp:all\r\n", 1),
		"M-SEARCH * HTTP/1.1\nMAN:\"ssdp:discover\"\nST:upnp:rootdevice\n\n", "NOTIFY * HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(seed), true, 0)
		f.Add([]byte(seed), false, 2)
	}
	f.Fuzz(func(t *testing.T, b []byte, v6 bool, version int) {
		g := fuzzed(t, quirks.UPnP{Search: quirks.Search{Version: version & 1}, Version: 1 + version>>1&1})
		q, ok := parseSearch(b)
		from := netip.MustParseAddrPort("127.0.0.1:1")
		if v6 {
			from = netip.MustParseAddrPort("[::1]:1")
		}
		if !ok || g.upnp.ignores(q, from) {
			return
		}
		all := g.upnp.found(q, from)
		if len(all) > len(g.upnp.targets()) {
			t.Fatalf("%d answers", len(all))
		}
		for _, reply := range all {
			if head := "HTTP/1.1 200 OK\r\n"; !strings.HasPrefix(string(reply), head) || !strings.HasSuffix(string(reply), "\r\n\r\n") ||
				strings.Count(string(reply), "\r\n") != 10 {
				t.Fatalf("answer %q", reply)
			}
		}
	})
}
