package attack_test

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// naiveSearch sends a search as the UPnP Device Architecture defines it, and trusts
// the LOCATION of the first response.
func naiveSearch(t *testing.T, at netip.AddrPort) (location string) {
	t.Helper()
	conn := listenUDP(t, anyLocalPort)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	const search = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n" +
		"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
	if _, err := conn.WriteToUDPAddrPort([]byte(search), at); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8<<10)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`LOCATION: (.*)\r`).FindSubmatch(b[:n])
	if m == nil {
		t.Fatalf("no location in %q", b[:n])
	}
	return string(m[1])
}

// naiveReadLimit is the number of bytes after which the test stops a naive client.
const naiveReadLimit = 16 << 20

// naiveHTTP is the standard library's client without keep-alive, so that no
// goroutine remains that other tests would report as leaked.
var naiveHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testTimeout}

// naiveGetShort is naiveGet with a short timeout. A client that queries devices one
// after another waits this long for each slow one.
func naiveGetShort(location string) (body string, err error) {
	soon := *naiveHTTP
	soon.Timeout = 300 * time.Millisecond
	resp, err := soon.Get(location)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// naiveGet fetches the location from any host.
func naiveGet(location string) (body string, err error) {
	resp, err := naiveHTTP.Get(location)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, naiveReadLimit))
	return string(b), err
}

// naiveRead returns the number of bytes that a client reads if it stops only at the
// end of the response, or at naiveReadLimit.
func naiveRead(t *testing.T, at netip.AddrPort) int64 {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	n, _ := io.Copy(io.Discard, io.LimitReader(conn, naiveReadLimit))
	return n
}

// naiveDescribe fetches a description and posts an action to its control URL, at
// any host.
func naiveDescribe(location string) error {
	description, err := naiveGet(location)
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`<controlURL>(.*?)</controlURL>`).FindStringSubmatch(description)
	if m == nil {
		return nil
	}
	base := location
	if b := regexp.MustCompile(`<URLBase>(.*?)</URLBase>`).FindStringSubmatch(description); b != nil {
		base = b[1]
	}
	from, err := url.Parse(base)
	if err != nil {
		return err
	}
	to, err := from.Parse(m[1])
	if err != nil {
		return err
	}
	resp, err := naiveHTTP.Post(to.String(), "text/xml", strings.NewReader("<AddPortMapping/>"))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// descriptionOf returns the description of a gateway with one service. urlBase may
// be empty.
func descriptionOf(urlBase, controlURL string) string {
	if urlBase != "" {
		urlBase = "<URLBase>" + urlBase + "</URLBase>"
	}
	const ns = "urn:schemas-upnp-org:"
	return `<?xml version="1.0"?><root xmlns="` + ns + `device-1-0">` + urlBase +
		`<device><deviceType>` + ns + `device:InternetGatewayDevice:1</deviceType><friendlyName>Router</friendlyName><UDN>uuid:0</UDN>` +
		`<deviceList><device><deviceType>` + ns + `device:WANDevice:1</deviceType>` +
		`<deviceList><device><deviceType>` + ns + `device:WANConnectionDevice:1</deviceType>` +
		`<serviceList><service><serviceType>` + ns + `service:WANIPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>` +
		`<controlURL>` + controlURL + `</controlURL></service></serviceList>` +
		`</device></deviceList></device></deviceList></device></root>`
}

// httpOK returns an HTTP response with a body.
func httpOK(body string) []byte {
	return []byte("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
}

// soapResponse returns the response to an action of WANIPConnection:1.
func soapResponse(action string, arguments ...string) []byte {
	var b strings.Builder
	for i := 0; i+1 < len(arguments); i += 2 {
		b.WriteString("<" + arguments[i] + ">" + arguments[i+1] + "</" + arguments[i] + ">")
	}
	return httpOK(`<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:` + action +
		`Response xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">` + b.String() + `</u:` + action + `Response></s:Body></s:Envelope>`)
}

// soapFault returns a response with a UPnP fault.
func soapFault(code, text string) []byte {
	return []byte("HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>` +
		`<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code +
		`</errorCode><errorDescription>` + text + `</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`)
}

// actionOf returns the name of the action in a request, or an empty string.
func actionOf(request string) string {
	m := regexp.MustCompile(`(?i)SOAPAction: "[^"#]*#(\w+)"`).FindStringSubmatch(request)
	if m == nil {
		return ""
	}
	return m[1]
}
