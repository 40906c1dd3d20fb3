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

// testTimeout is the maximum time for expected events. No test waits until it has
// passed.
const testTimeout = 20 * time.Second

// startGateway starts a gateway and closes it when the test ends.
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

// testContext returns a context that ends after testTimeout.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// host is a LAN host with one UDP socket.
type host struct {
	t *testing.T
	*net.UDPConn
}

// newHost returns a LAN host whose socket is connected to the NAT-PMP and PCP port.
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

// send sends a packet given in hex; spaces are ignored.
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

// receive returns the next packet in hex.
func (h host) receive() string {
	h.t.Helper()
	b := make([]byte, 4096)
	n, err := h.Read(b)
	if err != nil {
		h.t.Fatal(err)
	}
	return hex.EncodeToString(b[:n])
}

// request sends a packet and returns the response.
func (h host) request(packet string) string {
	h.t.Helper()
	h.send(packet)
	return h.receive()
}

// expect sends a packet and checks the response. An empty response means that there must
// be none. To check this, expect sends a second request: the gateway handles requests in
// order, so the response to the second request must arrive first.
func (h host) expect(packet, want string) {
	h.t.Helper()
	h.send(packet)
	if want == "" {
		h.send("0000")
		if got := h.receive(); !strings.HasPrefix(got, "0080") {
			h.t.Errorf("%s: got response %s, want none", packet, got)
		}
		return
	}
	if got := h.receive(); got != strings.ReplaceAll(want, " ", "") {
		h.t.Errorf("%s:\n got %s\nwant %s", packet, got, strings.ReplaceAll(want, " ", ""))
	}
}

// externalPort returns an external endpoint for AddMapping.
func externalPort(p uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, p)
}

// startReference starts a gateway with the external address and the epoch of the test
// vectors.
func startReference(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	config.ManualClock, config.Uptime = true, 1234*time.Second
	if !config.External.IsValid() {
		config.External = netip.MustParseAddr("203.0.113.7")
	}
	return startGateway(t, config)
}

// onlyEntry returns the only entry of the table.
func onlyEntry(t *testing.T, gw *gatewaytest.Gateway) gatewaytest.Entry {
	t.Helper()
	all := gw.Table()
	if len(all) != 1 {
		t.Fatalf("table has %d entries, want 1: %v", len(all), all)
	}
	return all[0]
}

// otherHost is an internal endpoint of another host on the LAN.
var otherHost = netip.MustParseAddrPort("127.0.0.99:9")

// otherHostEntry returns an entry of otherHost.
func otherHostEntry(p backends.Protocol, port uint16) gatewaytest.Entry {
	return gatewaytest.Entry{Protocol: p, Internal: otherHost, External: externalPort(port)}
}

// igdQuirks is the UPnP configuration of a gateway.
type igdQuirks = quirks.UPnP

// igdClient is a client for one service of a gateway. It sends and receives raw bytes.
type igdClient struct {
	t        *testing.T
	gw       *gatewaytest.Gateway
	from     string // IP address of the client
	to, path string
	service  string
}

// The service types and the control path of WANIPConnection.
const (
	ipConnection  = "urn:schemas-upnp-org:service:WANIPConnection:2"
	ipConnection1 = "urn:schemas-upnp-org:service:WANIPConnection:1"
	ipPath        = "/ctl/0/WANIPConnection"
)

// connReset is the code for a connection that was reset. connClosed is the code for a
// connection that was closed without a response.
const (
	connReset  = -1
	connClosed = -2
)

// newIGDClient returns a client for WANIPConnection.
func newIGDClient(t *testing.T, gw *gatewaytest.Gateway) igdClient {
	t.Helper()
	return igdClient{t, gw, "127.0.0.1", hostPort(t, gw.UPnP().DescriptionURL()), ipPath, ipConnection1}
}

// startIGD starts a gateway with these quirks, and returns a client for it.
func startIGD(t *testing.T, u igdQuirks) igdClient {
	t.Helper()
	return newIGDClient(t, startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: u}, ManualClock: true}))
}

// hostPort returns the host and port of a URL.
func hostPort(t *testing.T, url string) string {
	t.Helper()
	rest, ok := strings.CutPrefix(url, "http://")
	host, _, _ := strings.Cut(rest, "/")
	if !ok || host == "" {
		t.Fatalf("URL %q", url)
	}
	return host
}

// roundTrip sends bytes and returns the bytes that the server sends until the connection
// ends, with the error if any.
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

// get sends a GET request and returns the complete response.
func (c igdClient) get(path string, headers ...string) string {
	c.t.Helper()
	got, err := c.roundTrip("GET " + path + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n")
	if err != nil {
		c.t.Errorf("GET %s: %v", path, err)
	}
	return got
}

// envelope returns the SOAP envelope for an action.
func (c igdClient) envelope(action string, pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, "<%s>%s</%[1]s>", pairs[i], pairs[i+1])
	}
	return `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:` + action + ` xmlns:u="` + c.service + `">` +
		b.String() + `</u:` + action + `></s:Body></s:Envelope>`
}

// post sends an action with these header lines, in addition to Host and Content-Length.
func (c igdClient) post(body string, headers ...string) (string, error) {
	c.t.Helper()
	return c.roundTrip("POST " + c.path + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + strings.Join(append(headers, ""), "\r\n") +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// request calls an action and returns the complete response.
func (c igdClient) request(action string, pairs ...string) (string, error) {
	c.t.Helper()
	return c.post(c.envelope(action, pairs...), `SOAPAction: "`+c.service+"#"+action+`"`, `Content-Type: text/xml; charset="utf-8"`)
}

// call calls an action and returns the arguments of the response and its fault code; 0
// means success.
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

// parseArguments returns the arguments in a response.
func parseArguments(text string) map[string]string {
	args := make(map[string]string)
	for _, m := range argumentElement.FindAllStringSubmatch(text, -1) {
		args[m[1]] = m[2] + m[3]
	}
	return args
}

// faultCode returns the fault code in a response. It returns 0 for success, and fails if
// the response is neither a success nor a fault.
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

// addArguments returns arguments for AddPortMapping. The pairs replace default values;
// their names omit "New".
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

// add maps TCP port 8080 to port 80 for one hour, unless the pairs change this, and
// returns the fault code. The names of the pairs omit "New".
func (c igdClient) add(pairs ...string) int {
	c.t.Helper()
	_, code := c.call("AddPortMapping", addArguments(pairs...)...)
	return code
}

// addAny is like add, but calls AddAnyPortMapping and also returns the port.
func (c igdClient) addAny(pairs ...string) (string, int) {
	c.t.Helper()
	args, code := c.call("AddAnyPortMapping", addArguments(pairs...)...)
	return args["NewReservedPort"], code
}

// remove deletes a mapping and returns the fault code.
func (c igdClient) remove(protocol, port string) int {
	c.t.Helper()
	_, code := c.call("DeletePortMapping", "NewRemoteHost", "", "NewExternalPort", port, "NewProtocol", protocol)
	return code
}

// lookup returns a mapping by its port, and the fault code.
func (c igdClient) lookup(protocol, port string) (map[string]string, int) {
	c.t.Helper()
	return c.call("GetSpecificPortMappingEntry", "NewRemoteHost", "", "NewExternalPort", port, "NewProtocol", protocol)
}

// byIndex returns a mapping by its index, and the fault code.
func (c igdClient) byIndex(i uint32) (map[string]string, int) {
	c.t.Helper()
	return c.call("GetGenericPortMappingEntry", "NewPortMappingIndex", strconv.FormatUint(uint64(i), 10))
}

// listRange returns the listing of a range of TCP ports, and the fault code.
func (c igdClient) listRange(from, to string) (string, int) {
	c.t.Helper()
	args, code := c.call("GetListOfPortMappings", "NewStartPort", from, "NewEndPort", to, "NewProtocol", "TCP", "NewManage", "1", "NewNumberOfPorts", "0")
	return args["NewPortListing"], code
}

// checkCodes fails if the fault codes differ from the expected ones.
func checkCodes(t *testing.T, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("codes %v, want %v", got, want)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

// faultOf returns the fault code in a response, or 0.
func faultOf(text string) int {
	if m := errorCode.FindStringSubmatch(text); m != nil {
		code, _ := strconv.Atoi(m[1])
		return code
	}
	return 0
}

func isErrno(err error, want syscall.Errno) bool { return errors.Is(err, want) }

// statusLine returns the first line of a response, without the HTTP version.
func statusLine(response string) string {
	line, _, _ := strings.Cut(response, "\n")
	_, line, _ = strings.Cut(strings.TrimSuffix(line, "\r"), " ")
	return line
}

// isConnRefused reports whether the connection was refused because no server listens.
func isConnRefused(err error) bool {
	return isErrno(err, syscall.ECONNREFUSED) || isErrno(err, syscall.Errno(10061))
}

// second returns its second argument.
func second[T, U any](_ T, v U) U { return v }

// first returns its first argument.
func first[T, U any](v T, _ U) T { return v }

// isTimeout reports whether the error is a timeout.
func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// splitResponse splits an HTTP response into its header and its body.
func splitResponse(response string) (header, body string) {
	header, body, _ = strings.Cut(response, "\r\n\r\n")
	return header, body
}
