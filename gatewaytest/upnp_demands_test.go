package gatewaytest_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

func isErrno(err error, want syscall.Errno) bool { return errors.Is(err, want) }

// status is the first line of an answer, without the version.
func status(answer string) string {
	line, _, _ := strings.Cut(answer, "\n")
	_, line, _ = strings.Cut(strings.TrimSuffix(line, "\r"), " ")
	return line
}

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
		want    string // the status line, and the fault code
	}{
		"none":                 {demands{}, "Soapaction: " + strings.Trim(action, `"`), "200 OK 0"},
		"none, no action":      {demands{}, kind, "400 Bad Request 0"},
		"exact, canonical":     {demands{ExactSOAPAction: true}, "Soapaction: " + action, "501 Not Implemented 0"},
		"exact, upper case":    {demands{ExactSOAPAction: true}, "SOAPACTION: " + action, "200 OK 0"},
		"exact, as written":    {demands{ExactSOAPAction: true}, "SOAPAction: " + action, "200 OK 0"},
		"quoted, not":          {demands{QuotedSOAPAction: true}, "SOAPAction: " + strings.Trim(action, `"`), "400 Bad Request 0"},
		"quoted, half":         {demands{QuotedSOAPAction: true}, "SOAPAction: " + action[1:], "400 Bad Request 0"},
		"quoted":               {demands{QuotedSOAPAction: true}, "SOAPAction: " + action, "200 OK 0"},
		"content type, other":  {demands{ContentType: `text/xml; charset="utf-8"`}, "SOAPAction: " + action + "|Content-Type: text/xml", "415 Unsupported Media Type 0"},
		"content type":         {demands{ContentType: `text/xml; charset="utf-8"`}, "SOAPAction: " + action + "|" + kind, "200 OK 0"},
		"user agent, none":     {demands{UserAgent: "MiniUPnPc"}, "SOAPAction: " + action, "400 Bad Request 0"},
		"user agent":           {demands{UserAgent: "MiniUPnPc"}, "SOAPAction: " + action + "|User-Agent: Debian UPnP/1.1 MiniUPnPc/2.2", "200 OK 0"},
		"literal host":         {demands{LiteralHost: true}, "SOAPAction: " + action, "200 OK 0"},
		"literal host, a name": {demands{LiteralHost: true}, "Host: router.lan:80|SOAPAction: " + action, "400 Bad Request 0"},
		"all": {
			demands{
				ExactSOAPAction: true, QuotedSOAPAction: true, SOAPActionNotLast: true,
				ContentType: `text/xml; charset="utf-8"`, LiteralHost: true, GetHTTP10: true, Compact: true, RemoteHost: true,
			}, "SOAPAction: " + action + "|" + kind, "200 OK 0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := controlled(t, igd{Demands: tt.demands})
			lines := strings.Split(tt.headers, "|")
			if !strings.HasPrefix(lines[0], "Host:") {
				lines = append([]string{"Host: " + c.to}, lines...)
			}
			body := c.envelope("GetStatusInfo")
			got, err := c.exchange("POST " + ipPath + " HTTP/1.1\r\n" + strings.Join(lines, "\r\n") +
				"\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body)
			if err != nil || status(got)+" "+itoa(faultOf(got)) != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestUPnPSOAPActionNotLast(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Demands: quirks.Demands{SOAPActionNotLast: true}})
	body := c.envelope("GetStatusInfo")
	send := func(headers string) int {
		got, err := c.exchange("POST " + ipPath + " HTTP/1.1\r\nHost: " + c.to + "\r\n" + headers + "\r\n" + body)
		if err != nil {
			t.Error(err)
		}
		return faultOf(got)
	}
	length, action := "Content-Length: "+itoa(len(body))+"\r\n", `SOAPAction: "`+ipConnection1+"#GetStatusInfo\"\r\n"
	wantCodes(t, []int{send(length + action), send(action + length)}, 401, 0)
}

func TestUPnPGetHTTP10(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Demands: quirks.Demands{GetHTTP10: true}})
	if got := c.get("/rootDesc.xml"); status(got) != "501 Not Implemented" {
		t.Errorf("HTTP/1.1: %s", got)
	}
	if got, err := c.exchange("GET /rootDesc.xml HTTP/1.0\r\n\r\n"); err != nil || status(got) != "200 OK" {
		t.Errorf("HTTP/1.0: %s, %v", got, err)
	}
}

func TestUPnPDemandsOfArguments(t *testing.T) {
	t.Parallel()
	type demands = quirks.Demands
	without := mapping()[2:]
	for name, tt := range map[string]struct {
		demands demands
		args    []string
		code    int
	}{
		"no remote host":             {demands{}, without, 0},
		"no remote host, refused":    {demands{RemoteHost: true}, without, 402},
		"empty remote host":          {demands{RemoteHost: true, NoZeroRemoteHost: true}, mapping(), 0},
		"zero remote host":           {demands{}, mapping("RemoteHost", "0.0.0.0"), 0},
		"zero remote host, refused":  {demands{NoZeroRemoteHost: true}, mapping("RemoteHost", "0.0.0.0"), 402},
		"lower case":                 {demands{}, mapping("Protocol", "tcp"), 0},
		"lower case, refused":        {demands{UpperProtocol: true}, mapping("Protocol", "tcp"), 402},
		"upper case":                 {demands{UpperProtocol: true}, mapping(), 0},
		"blank description, refused": {demands{BlankDescription: 402}, mapping("PortMappingDescription", " "), 402},
		"blank description":          {demands{}, mapping("PortMappingDescription", ""), 0},
		"odd description, refused":   {demands{OddDescription: 501}, mapping("PortMappingDescription", `&quot;a&quot;`), 501},
		"plain description":          {demands{OddDescription: 501, BlankDescription: 402}, mapping("PortMappingDescription", "a-B_3.c d"), 0},
		"long description, refused": {
			demands{LongDescription: 605, MaxDescription: 63}, mapping("PortMappingDescription", strings.Repeat("x", 64)), 605,
		},
		"long description": {demands{LongDescription: 605, MaxDescription: 63}, mapping("PortMappingDescription", strings.Repeat("x", 63)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := controlled(t, igd{Demands: tt.demands})
			_, code := c.call("AddPortMapping", tt.args...)
			wantCodes(t, []int{code}, tt.code)
		})
	}
}

func TestUPnPCompact(t *testing.T) {
	t.Parallel()
	for _, compact := range []bool{false, true} {
		c := controlled(t, igd{Demands: quirks.Demands{Compact: compact}})
		spaced := strings.Replace(c.envelope("AddPortMapping", mapping()...), "><New", ">\r\n  <New", 1)
		got, err := c.post(spaced, `SOAPAction: "`+ipConnection1+`#AddPortMapping"`)
		if err != nil {
			t.Fatal(err)
		}
		if code := faultOf(got); (code == 402) != compact || (code == 0) == compact {
			t.Errorf("compact %v: fault %d", compact, code)
		}
		wantCodes(t, []int{c.add()}, 0)
	}
}
