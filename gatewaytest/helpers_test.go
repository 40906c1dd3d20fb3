package gatewaytest_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must happen; no test waits for it to pass.
const testTimeout = 20 * time.Second

func startGateway(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gw.Close(); err != nil {
			t.Error(err)
		}
	})
	return gw
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// host is a LAN host with a socket of its own.
type host struct {
	t *testing.T
	*net.UDPConn
}

func newHost(t *testing.T, gw *gatewaytest.Gateway) host {
	t.Helper()
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(gw.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return host{t, conn}
}

// send sends hex, in which spaces do not count.
func (h host) send(packet string) {
	h.t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(packet, " ", ""))
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.Write(b); err != nil {
		h.t.Fatal(err)
	}
}

// receive returns the next packet as hex.
func (h host) receive() string {
	h.t.Helper()
	b := make([]byte, 4096)
	n, err := h.Read(b)
	if err != nil {
		h.t.Fatal(err)
	}
	return hex.EncodeToString(b[:n])
}

func (h host) request(packet string) string {
	h.t.Helper()
	h.send(packet)
	return h.receive()
}

// expect asks, and wants the answer; an empty one is silence: the gateway
// takes requests in turn, so that the next one's answer comes first.
func (h host) expect(packet, want string) {
	h.t.Helper()
	h.send(packet)
	if want == "" {
		h.send("0000")
		if got := h.receive(); !strings.HasPrefix(got, "0080") {
			h.t.Errorf("%s: got %s, want silence", packet, got)
		}
		return
	}
	if got := h.receive(); got != strings.ReplaceAll(want, " ", "") {
		h.t.Errorf("%s:\n got %s\nwant %s", packet, got, strings.ReplaceAll(want, " ", ""))
	}
}

func externalPort(p uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, p)
}

// reference is a gateway with the addresses and the epoch of the vectors.
func startReference(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	config.ManualClock, config.Uptime = true, 1234*time.Second
	if !config.External.IsValid() {
		config.External = netip.MustParseAddr("203.0.113.7")
	}
	return startGateway(t, config)
}

// only returns the one entry of the table.
func onlyEntry(t *testing.T, gw *gatewaytest.Gateway) gatewaytest.Entry {
	t.Helper()
	all := gw.Table()
	if len(all) != 1 {
		t.Fatalf("table has %d entries, want 1: %v", len(all), all)
	}
	return all[0]
}

var otherHost = netip.MustParseAddrPort("127.0.0.99:9")

func otherHostEntry(p backends.Protocol, port uint16) gatewaytest.Entry {
	return gatewaytest.Entry{Protocol: p, Internal: otherHost, External: externalPort(port)}
}

// igd is what a gateway starts as.
type igdQuirks = quirks.UPnP

// control talks to one service of a gateway, as bytes.
type igdClient struct {
	t        *testing.T
	gw       *gatewaytest.Gateway
	from     string // the client's address
	to, path string
	service  string
}

const (
	ipConnection  = "urn:schemas-upnp-org:service:WANIPConnection:2"
	ipConnection1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
	ipPath        = "/ctl/0/WANIPConnection"
)

// reset is control's code for a connection that was reset, and ended for one
// that ended without an answer.
const (
	connReset  = -1
	connClosed = -2
)

func newIGDClient(t *testing.T, gw *gatewaytest.Gateway) igdClient {
	t.Helper()
	return igdClient{t, gw, "127.0.0.1", hostPort(t, gw.UPnP().DescriptionURL()), ipPath, ipConnection1}
}

// controlled is a control of a gateway with these quirks.
func startIGD(t *testing.T, u igdQuirks) igdClient {
	t.Helper()
	return newIGDClient(t, startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: u}, ManualClock: true}))
}

func hostPort(t *testing.T, url string) string {
	t.Helper()
	rest, ok := strings.CutPrefix(url, "http://")
	host, _, _ := strings.Cut(rest, "/")
	if !ok || host == "" {
		t.Fatalf("URL %q", url)
	}
	return host
}

// exchange sends bytes and returns all that comes back. Errors after the first
// byte are the end.
func (c igdClient) roundTrip(raw string) (string, error) {
	c.t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr(c.from), 0)
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(at)}
	conn, err := d.DialContext(testContext(c.t), "tcp", c.to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	if _, err := conn.Write([]byte(raw)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

// get asks for the description and returns the whole answer.
func (c igdClient) get(path string, headers ...string) string {
	c.t.Helper()
	got, err := c.roundTrip("GET " + path + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n")
	if err != nil {
		c.t.Errorf("GET %s: %v", path, err)
	}
	return got
}

// envelope is a request as the standard writes it.
func (c igdClient) envelope(action string, pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, "<%s>%s</%[1]s>", pairs[i], pairs[i+1])
	}
	return `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:` + action + ` xmlns:u="` + c.service + `">` +
		b.String() + `</u:` + action + `></s:Body></s:Envelope>`
}

// post sends an action with these header lines, Host and Content-Length apart.
func (c igdClient) post(body string, headers ...string) (string, error) {
	c.t.Helper()
	return c.roundTrip("POST " + c.path + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + strings.Join(append(headers, ""), "\r\n") +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// ask calls an action and returns the whole answer.
func (c igdClient) request(action string, pairs ...string) (string, error) {
	c.t.Helper()
	return c.post(c.envelope(action, pairs...), `SOAPAction: "`+c.service+"#"+action+`"`, `Content-Type: text/xml; charset="utf-8"`)
}

// call calls an action and returns the arguments of the answer, and its fault
// code, 0 for success.
func (c igdClient) call(action string, pairs ...string) (map[string]string, int) {
	c.t.Helper()
	got, err := c.request(action, pairs...)
	if err != nil || got == "" {
		switch {
		case got == "" && err == nil:
			return nil, connClosed
		case got == "" && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.Errno(10054))):
			return nil, connReset
		}
		c.t.Errorf("%s: %q, %v", action, got, err)
		return nil, connClosed
	}
	return parseArguments(got), faultCode(c.t, got)
}

var (
	argumentElement = regexp.MustCompile(`<(New\w+|UniqueID|FirewallEnabled|InboundPinholeAllowed|PinholePackets|IsWorking)>(?s:<!\[CDATA\[(.*)\]\]>|([^<]*))</`)
	errorCode       = regexp.MustCompile(`errorCode>\s*(-?\d+)\s*</`)
)

func parseArguments(text string) map[string]string {
	args := make(map[string]string)
	for _, m := range argumentElement.FindAllStringSubmatch(text, -1) {
		args[m[1]] = m[2] + m[3]
	}
	return args
}

func faultCode(t *testing.T, text string) int {
	t.Helper()
	m := errorCode.FindStringSubmatch(text)
	if m == nil {
		if !strings.HasPrefix(text, "HTTP/1.1 200 OK\r\n") {
			t.Errorf("neither success nor fault: %s", text)
		}
		return 0
	}
	code, _ := strconv.Atoi(m[1])
	return code
}

// mapping is the arguments of AddPortMapping, but for the pairs.
func addArguments(pairs ...string) []string {
	args := []string{
		"NewRemoteHost", "", "NewExternalPort", "8080", "NewProtocol", "TCP", "NewInternalPort", "80",
		"NewInternalClient", "127.0.0.1", "NewEnabled", "1", "NewPortMappingDescription", "a test", "NewLeaseDuration", "3600",
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if j := slices.Index(args, "New"+pairs[i]); j >= 0 {
			args[j+1] = pairs[i+1]
		}
	}
	return args
}

// add maps TCP 8080 to port 80 for an hour, but for the pairs, whose names
// have no "New", and returns the fault code.
func (c igdClient) add(pairs ...string) int {
	c.t.Helper()
	_, code := c.call("AddPortMapping", addArguments(pairs...)...)
	return code
}

func (c igdClient) addAny(pairs ...string) (string, int) {
	c.t.Helper()
	args, code := c.call("AddAnyPortMapping", addArguments(pairs...)...)
	return args["NewReservedPort"], code
}

func (c igdClient) remove(protocol, port string) int {
	c.t.Helper()
	_, code := c.call("DeletePortMapping", "NewRemoteHost", "", "NewExternalPort", port, "NewProtocol", protocol)
	return code
}

func (c igdClient) lookup(protocol, port string) (map[string]string, int) {
	c.t.Helper()
	return c.call("GetSpecificPortMappingEntry", "NewRemoteHost", "", "NewExternalPort", port, "NewProtocol", protocol)
}

func (c igdClient) byIndex(i uint32) (map[string]string, int) {
	c.t.Helper()
	return c.call("GetGenericPortMappingEntry", "NewPortMappingIndex", strconv.FormatUint(uint64(i), 10))
}

func (c igdClient) listRange(from, to string) (string, int) {
	c.t.Helper()
	args, code := c.call("GetListOfPortMappings", "NewStartPort", from, "NewEndPort", to, "NewProtocol", "TCP", "NewManage", "1", "NewNumberOfPorts", "0")
	return args["NewPortListing"], code
}

// wantCodes fails unless these are the fault codes.
func checkCodes(t *testing.T, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("codes %v, want %v", got, want)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

// faultOf is the fault code in an answer, or 0.
func faultOf(text string) int {
	if m := errorCode.FindStringSubmatch(text); m != nil {
		code, _ := strconv.Atoi(m[1])
		return code
	}
	return 0
}

func isErrno(err error, want syscall.Errno) bool { return errors.Is(err, want) }

// status is the first line of an answer, without the version.
func statusLine(answer string) string {
	line, _, _ := strings.Cut(answer, "\n")
	_, line, _ = strings.Cut(strings.TrimSuffix(line, "\r"), " ")
	return line
}

// refusedBy reports whether nobody listens.
func isConnRefused(err error) bool {
	return isErrno(err, syscall.ECONNREFUSED) || isErrno(err, syscall.Errno(10061))
}

func second[T, U any](_ T, v U) U { return v }

func first[T, U any](v T, _ U) T { return v }

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func splitResponse(answer string) (header, body string) {
	header, body, _ = strings.Cut(answer, "\r\n\r\n")
	return header, body
}
