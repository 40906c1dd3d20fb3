package gatewaytest_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestUPnPDemandsOfHeaders(t *testing.T) {
	t.Parallel()
	type demands = quirks.Demands
	const (
		action = `"` + ipConnection1 + `#GetStatusInfo"`
		kind   = `Content-Type: text/xml; charset="utf-8"`
	)
	for name, tt := range map[string]struct {
		demands demands
		headers string // separated by |
		want    string // status line and fault code
	}{
		"none":                   {demands{}, "Soapaction: " + strings.Trim(action, `"`), "200 OK 0"},
		"none, no action":        {demands{}, kind, "400 Bad Request 0"},
		"exact, canonical form":  {demands{ExactSOAPAction: true}, "Soapaction: " + action, "501 Not Implemented 0"},
		"exact, upper case":      {demands{ExactSOAPAction: true}, "SOAPACTION: " + action, "200 OK 0"},
		"exact, as written":      {demands{ExactSOAPAction: true}, "SOAPAction: " + action, "200 OK 0"},
		"quoted, without quotes": {demands{QuotedSOAPAction: true}, "SOAPAction: " + strings.Trim(action, `"`), "400 Bad Request 0"},
		"quoted, one quote":      {demands{QuotedSOAPAction: true}, "SOAPAction: " + action[1:], "400 Bad Request 0"},
		"quoted":                 {demands{QuotedSOAPAction: true}, "SOAPAction: " + action, "200 OK 0"},
		"content type, other":    {demands{ContentType: `text/xml; charset="utf-8"`}, "SOAPAction: " + action + "|Content-Type: text/xml", "415 Unsupported Media Type 0"},
		"content type":           {demands{ContentType: `text/xml; charset="utf-8"`}, "SOAPAction: " + action + "|" + kind, "200 OK 0"},
		"user agent, none":       {demands{UserAgent: "MiniUPnPc"}, "SOAPAction: " + action, "400 Bad Request 0"},
		"user agent":             {demands{UserAgent: "MiniUPnPc"}, "SOAPAction: " + action + "|User-Agent: Debian UPnP/1.1 MiniUPnPc/2.2", "200 OK 0"},
		"literal host":           {demands{LiteralHost: true}, "SOAPAction: " + action, "200 OK 0"},
		"literal host, name":     {demands{LiteralHost: true}, "Host: router.lan:80|SOAPAction: " + action, "400 Bad Request 0"},
		"all": {
			demands{
				ExactSOAPAction: true, QuotedSOAPAction: true, SOAPActionNotLast: true,
				ContentType: `text/xml; charset="utf-8"`, LiteralHost: true, GetHTTP10: true, Compact: true, RemoteHost: true,
			}, "SOAPAction: " + action + "|" + kind, "200 OK 0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Demands: tt.demands})
			lines := strings.Split(tt.headers, "|")
			if !strings.HasPrefix(lines[0], "Host:") {
				lines = append([]string{"Host: " + c.to}, lines...)
			}
			body := c.envelope("GetStatusInfo")
			got, err := c.roundTrip("POST " + ipPath + " HTTP/1.1\r\n" + strings.Join(lines, "\r\n") +
				"\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body)
			if err != nil || statusLine(got)+" "+itoa(faultOf(got)) != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestUPnPSOAPActionNotLast(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Demands: quirks.Demands{SOAPActionNotLast: true}})
	body := c.envelope("GetStatusInfo")
	send := func(headers string) int {
		got, err := c.roundTrip("POST " + ipPath + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + headers + "\r\n" + body)
		if err != nil {
			t.Error(err)
		}
		return faultOf(got)
	}
	length, action := "Content-Length: "+itoa(len(body))+"\r\n", `SOAPAction: "`+ipConnection1+"#GetStatusInfo\"\r\n"
	checkCodes(t, []int{send(length + action), send(action + length)}, 401, 0)
}

func TestUPnPGetHTTP10(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Demands: quirks.Demands{GetHTTP10: true}})
	if got := c.get("/rootDesc.xml"); statusLine(got) != "501 Not Implemented" {
		t.Errorf("HTTP/1.1: %s", got)
	}
	if got, err := c.roundTrip("GET /rootDesc.xml HTTP/1.0\r\n\r\n"); err != nil || statusLine(got) != "200 OK" {
		t.Errorf("HTTP/1.0: %s, %v", got, err)
	}
}

func TestUPnPArgumentDemands(t *testing.T) {
	t.Parallel()
	type demands = quirks.Demands
	without := addArguments()[2:]
	for name, tt := range map[string]struct {
		demands demands
		args    []string
		code    int
	}{
		"no remote host":             {demands{}, without, 0},
		"no remote host, refused":    {demands{RemoteHost: true}, without, 402},
		"empty remote host":          {demands{RemoteHost: true, NoZeroRemoteHost: true}, addArguments(), 0},
		"zero remote host":           {demands{}, addArguments("RemoteHost", "0.0.0.0"), 0},
		"zero remote host, refused":  {demands{NoZeroRemoteHost: true}, addArguments("RemoteHost", "0.0.0.0"), 402},
		"lower case":                 {demands{}, addArguments("Protocol", "tcp"), 0},
		"lower case, refused":        {demands{UpperProtocol: true}, addArguments("Protocol", "tcp"), 402},
		"upper case":                 {demands{UpperProtocol: true}, addArguments(), 0},
		"blank description, refused": {demands{BlankDescription: 402}, addArguments("PortMappingDescription", " "), 402},
		"blank description":          {demands{}, addArguments("PortMappingDescription", ""), 0},
		"odd description, refused":   {demands{OddDescription: 501}, addArguments("PortMappingDescription", `&quot;a&quot;`), 501},
		"plain description":          {demands{OddDescription: 501, BlankDescription: 402}, addArguments("PortMappingDescription", "a-B_3.c d"), 0},
		"long description, refused": {
			demands{LongDescription: 605, MaxDescription: 63}, addArguments("PortMappingDescription", strings.Repeat("x", 64)), 605,
		},
		"long description": {demands{LongDescription: 605, MaxDescription: 63}, addArguments("PortMappingDescription", strings.Repeat("x", 63)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Demands: tt.demands})
			_, code := c.call("AddPortMapping", tt.args...)
			checkCodes(t, []int{code}, tt.code)
		})
	}
}

func TestUPnPCompact(t *testing.T) {
	t.Parallel()
	for _, compact := range []bool{false, true} {
		c := startIGD(t, igdQuirks{Demands: quirks.Demands{Compact: compact}})
		withSpace := strings.Replace(c.envelope("AddPortMapping", addArguments()...), "><New", ">\r\n  <New", 1)
		got, err := c.post(withSpace, `SOAPAction: "`+ipConnection1+`#AddPortMapping"`)
		if err != nil {
			t.Fatal(err)
		}
		if code := faultOf(got); (code == 402) != compact || (code == 0) == compact {
			t.Errorf("compact %v: fault %d", compact, code)
		}
		checkCodes(t, []int{c.add()}, 0)
	}
}

// TestUPnPWire checks the response to GetStatusInfo byte by byte.
func TestUPnPWire(t *testing.T) {
	t.Parallel()
	type wire = quirks.Wire
	const (
		body = `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
			`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:GetStatusInfoResponse ` +
			`xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewConnectionStatus>Connected</NewConnectionStatus>` +
			`<NewLastConnectionError>ERROR_NONE</NewLastConnectionError><NewUptime>0</NewUptime>` +
			`</u:GetStatusInfoResponse></s:Body></s:Envelope>`
		server = "SERVER: goforward/1 UPnP/1.1 gatewaytest/1\r\n"
		kind   = "CONTENT-TYPE: text/xml; charset=\"utf-8\"\r\n"
		closed = "CONNECTION: close\r\n\r\n"
	)
	length := "CONTENT-LENGTH: " + itoa(len(body)) + "\r\n"
	chunked := "TRANSFER-ENCODING: chunked\r\n" + closed
	for rest := body; rest != ""; {
		n := min(100, len(rest))
		chunked += map[bool]string{true: "64", false: "12"}[n == 100] + "\r\n" + rest[:n] + "\r\n"
		rest = rest[n:]
	}
	if n := len(body) % 100; n != 0x12 {
		t.Fatalf("the last chunk has %#x bytes", n)
	}
	ok := "HTTP/1.1 200 OK\r\n" + kind + server
	for name, tt := range map[string]struct {
		quirks wire
		want   string
	}{
		"none":            {wire{}, ok + length + closed + body},
		"http 1.0":        {wire{HTTP10: true}, strings.Replace(ok, "1.1", "1.0", 1) + length + closed + body},
		"no length":       {wire{NoLength: true}, ok + closed + body},
		"chunked":         {wire{Chunked: true}, ok + chunked + "0\r\n\r\n"},
		"too long":        {wire{LengthOff: 7}, ok + "CONTENT-LENGTH: " + itoa(len(body)+7) + "\r\n" + closed + body},
		"too short":       {wire{LengthOff: -7}, ok + "CONTENT-LENGTH: " + itoa(len(body)-7) + "\r\n" + closed + body},
		"negative length": {wire{LengthOff: -99999}, ok + "CONTENT-LENGTH: 0\r\n" + closed + body},
		"lf":              {wire{LFOnly: true}, strings.ReplaceAll(ok+length+closed+body, "\r\n", "\n")},
		"no space": {wire{NoSpace: true}, strings.NewReplacer("TYPE: ", "TYPE:", "LENGTH: ", "LENGTH:", "SERVER: ", "SERVER:", "CONNECTION: ", "CONNECTION:").
			Replace(ok+length+closed) + body},
		"no reason": {wire{NoReason: true}, strings.Replace(ok, " OK", "", 1) + length + closed + body},
		"combined": {
			wire{HTTP10: true, NoLength: true, LFOnly: true, NoSpace: true, NoReason: true},
			"HTTP/1.0 200\nCONTENT-TYPE:text/xml; charset=\"utf-8\"\nSERVER:goforward/1 UPnP/1.1 gatewaytest/1\nCONNECTION:close\n\n" + body,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Wire: tt.quirks})
			c.gw.Restart(gatewaytest.RestartOptions{}) // sets the uptime in the response to 0
			got, err := c.request("GetStatusInfo")
			if err != nil || got != tt.want {
				t.Errorf("%v\ngot  %q\nwant %q", err, got, tt.want)
			}
		})
	}
}

// TestUPnPLeaveOpen checks that the connection stays open after the response, and
// accepts further requests.
func TestUPnPLeaveOpen(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Wire: quirks.Wire{LeaveOpen: true}})
	conn, err := net.Dial("tcp4", c.to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	in := bufio.NewReader(conn)
	for range 3 {
		if _, err := io.WriteString(conn, "GET /rootDesc.xml HTTP/1.1\r\nHost: "+c.to+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := in.ReadString('>')
			if err != nil || strings.Contains(line, "CONNECTION") {
				t.Fatalf("%q, %v", line, err)
			}
			if strings.HasSuffix(line, "</root>") {
				break
			}
		}
	}
	if n := in.Buffered(); n != 0 {
		t.Errorf("%d bytes after the response", n)
	}
}

func TestUPnPFaultForms(t *testing.T) {
	t.Parallel()
	type form = quirks.FaultForm
	standard := `<s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>` +
		`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>713</errorCode>` +
		`<errorDescription>SpecifiedArrayIndexInvalid</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`
	for name, tt := range map[string]struct {
		form   form
		edit   *strings.Replacer
		status string
	}{
		"standard":    {form{}, strings.NewReplacer(), "500 Internal Server Error"},
		"prefix":      {form{Prefix: "SOAP-ENV"}, strings.NewReplacer("<s:", "<SOAP-ENV:", "</s:", "</SOAP-ENV:", ">s:", ">SOAP-ENV:"), "500 Internal Server Error"},
		"camel case":  {form{CamelCase: true}, strings.NewReplacer("faultcode", "faultCode", "faultstring", "faultString"), "500 Internal Server Error"},
		"code prefix": {form{CodePrefix: "u"}, strings.NewReplacer("<error", "<u:error", "</error", "</u:error", "<UPnPError xmlns=", "<u:UPnPError xmlns:u=", "</UPnP", "</u:UPnP"), "500 Internal Server Error"},
		"code spaces": {form{CodeSpaces: true}, strings.NewReplacer("713", " 713\t"), "500 Internal Server Error"},
		"status":      {form{StatusOK: true}, strings.NewReplacer(), "200 OK"},
		"vendor code": {form{Code: -911}, strings.NewReplacer("713", "-911", "SpecifiedArrayIndexInvalid", "Vendor Error"), "500 Internal Server Error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := startIGD(t, igdQuirks{FaultForm: tt.form}).request("GetGenericPortMappingEntry", "NewPortMappingIndex", "0")
			if err != nil || statusLine(got) != tt.status || !strings.HasSuffix(got, tt.edit.Replace(standard)) {
				t.Errorf("%v\ngot  %s\nwant %s", err, got, tt.edit.Replace(standard))
			}
		})
	}
}

// TestUPnPBadRequests checks that invalid requests get an error status, and that the
// size of requests is limited.
func TestUPnPBadRequests(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	for name, tt := range map[string]struct{ raw, want string }{
		"garbage":           {"\x16\x03\x01\r\n\r\n", "400 Bad Request"},
		"two words":         {"GET /\r\n\r\n", "400 Bad Request"},
		"unknown version":   {"GET / FTP/1.1\r\n\r\n", "400 Bad Request"},
		"no colon":          {"GET / HTTP/1.1\r\nHost\r\n\r\n", "400 Bad Request"},
		"folded":            {"GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n", "400 Bad Request"},
		"long line":         {"GET /" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\n\r\n", "431 Request Header Fields Too Large"},
		"many lines":        {"GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", 4<<10) + "\r\n", "431 Request Header Fields Too Large"},
		"no length":         {"POST / HTTP/1.1\r\n\r\n", "411 Length Required"},
		"chunked":           {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "411 Length Required"},
		"no number":         {"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400 Bad Request"},
		"long body":         {"POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", "413 Request Entity Too Large"},
		"method":            {"PUT /evt/0/WANIPConnection HTTP/1.1\r\n\r\n", "501 Not Implemented"},
		"path":              {"GET /scpd/WANIPConnection.xml HTTP/1.1\r\n\r\n", "404 Not Found"},
		"lf only":           {"GET /rootDesc.xml HTTP/1.0\n\n", "200 OK"},
		"empty lines first": {"\r\n\r\nGET /rootDesc.xml HTTP/1.1\r\n\r\n", "200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := c.roundTrip(tt.raw)
			if statusLine(got) != tt.want {
				t.Errorf("got %q, %v, want %s", got, err, tt.want)
			}
		})
	}
}

// TestUPnPConnectionLimit checks that connections above the limit are closed, and that
// closed connections no longer count.
func TestUPnPConnectionLimit(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	var all []net.Conn
	for range 256 {
		conn, err := net.Dial("tcp4", c.to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all = append(all, conn)
	}
	if got, err := c.roundTrip(""); got != "" || isTimeout(err) {
		t.Errorf("connection above the limit: %q, %v", got, err)
	}
	_ = all[0].(*net.TCPConn).CloseWrite()
	_ = all[0].SetDeadline(time.Now().Add(testTimeout))
	if _, err := io.ReadAll(all[0]); err != nil { // the server has closed the connection
		t.Fatal(err)
	}
	if got := c.get("/rootDesc.xml"); statusLine(got) != "200 OK" {
		t.Errorf("after a connection was closed: %q", got)
	}
}
