package lenient

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// description is a UPnP description in its standard form.
const description = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion><!--URLBase-->
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>Test Router</friendlyName>
<manufacturer>ACME</manufacturer><manufacturerURL>http://x/</manufacturerURL><modelName>R1</modelName><modelNumber>7</modelNumber>
<UDN>uuid:1</UDN><iconList><icon><mimetype>image/png</mimetype><width>48px</width></icon></iconList>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><serviceId>urn:upnp-org:serviceId:L3Forwarding1</serviceId><controlURL>/l3</controlURL><SCPDURL>/l3.xml</SCPDURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><friendlyName>WAN</friendlyName><UDN>uuid:2</UDN>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType><controlURL>/c</controlURL></service></serviceList>
<deviceList><device><UDN>uuid:3</UDN><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>/ctl</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s.xml</SCPDURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANPPPConn1</serviceId><controlURL>/ppp</controlURL></service>
</serviceList></device>
<device><UDN>uuid:4</UDN><serviceList>
<service><serviceType>urn:dslforum-org:service:WANIPConnection:2</serviceType><controlURL>/ip2</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType><controlURL>/fw?6</controlURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>`

// listing is a list of port mappings in its standard form.
const listing = `<?xml version="1.0"?>
<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<p:PortMappingEntry><p:NewRemoteHost></p:NewRemoteHost><p:NewExternalPort>6881</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>6882</p:NewInternalPort><p:NewInternalClient>192.168.1.11</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled><p:NewDescription>a&lt;b</p:NewDescription><p:NewLeaseTime>60</p:NewLeaseTime></p:PortMappingEntry>
<p:PortMappingEntry><p:NewRemoteHost>198.51.100.9</p:NewRemoteHost><p:NewExternalPort>6883</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>6883</p:NewInternalPort><p:NewInternalClient>192.168.1.12</p:NewInternalClient><p:NewEnabled>0</p:NewEnabled><p:NewPortMappingDescription></p:NewPortMappingDescription><p:NewLeaseTime>0</p:NewLeaseTime></p:PortMappingEntry>
<p:PortMappingEntry><p:NewExternalPort>nonsense</p:NewExternalPort></p:PortMappingEntry>
</p:PortMappingList>`

// envelope contains an action of UPnP, a response and a fault in their standard forms.
const envelope = `<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>
<u:AddPortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewRemoteHost></NewRemoteHost><NewExternalPort>6881</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>6881</NewInternalPort><NewInternalClient>192.168.1.10</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>gomap</NewPortMappingDescription><NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping>
<u:GetExternalIPAddressResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:GetExternalIPAddressResponse>
<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>725</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>`

// outline writes the elements below e and their texts.
func outline(e *Element) string {
	var b strings.Builder
	for _, c := range e.Children {
		fmt.Fprintf(&b, "%s(%s%s)", c.Name, c.Text, outline(c))
	}
	return b.String()
}

// referenceOutline is outline with the parser of package encoding/xml. Its error is
// nil if the document is well-formed.
func referenceOutline(document string) (string, error) {
	d := xml.NewDecoder(strings.NewReader(document))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	open := []*Element{{}}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return outline(open[0]), nil
		}
		if err != nil {
			return "", err
		}
		last := open[len(open)-1]
		switch token := token.(type) {
		case xml.StartElement:
			e := &Element{Name: token.Name.Local}
			last.Children = append(last.Children, e)
			open = append(open, e)
		case xml.EndElement:
			last.Text = strings.TrimSpace(last.content.String())
			open = open[:len(open)-1]
		case xml.CharData:
			last.content.Write(token)
		}
	}
}

var wellFormed = []string{
	description, strings.ReplaceAll(description, "\n", "\r\n"), listing, envelope,
	`<!DOCTYPE a [<!ENTITY b "c"><!ELEMENT d (#PCDATA)>]><a><e/></a>`,
	`<a b='"' c="'" d=">" e='/>' f = "g"><h/> <i j="k"/>l</a >`,
	"<a>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#x1F600; &amp;lt; ü <b>\u2028</b>c</a>",
	"<a><![CDATA[<b>&amp;]]]]><![CDATA[></b>]]><!-- <c> --><?d <e> ?>f</a>\n<!-- <g/> -->",
	"<x:a xmlns:x='http://y/'><x:b x:c='d'\n>e</x:b\t></x:a>",
}

// TestWellFormed checks that well-formed documents have the same elements and texts
// as with package encoding/xml.
func TestWellFormed(t *testing.T) {
	for _, document := range wellFormed {
		want, err := referenceOutline(document)
		if err != nil {
			t.Fatalf("%s: %v", document, err)
		}
		got, err := Parse([]byte(document), 1000)
		if err != nil || outline(got) != want {
			t.Errorf("%s:\n%s, %v; want\n%s", document, outline(got), err, want)
		}
	}
}

// TestNotWellFormed checks that an error in a document does not change what follows.
func TestNotWellFormed(t *testing.T) {
	const rest = "<c>1</c></r>"
	for in, want := range map[string]string{
		`<UPnPErrorxmlns="u">x</UPnPError>`:         "UPnPError(x)",
		`<s:UPnPErrorxmlns:s="u/v">x</s:UPnPError>`: "UPnPError(x)",
		`<b><!-- a -- b -->x</b>`:                   "b(x)",
		`<b><? echo ?>x</b>`:                        "b(x)",
		`<b>]]>x</b>`:                               "b(]]>x)",
		`<b a="<">x</b>`:                            "b(x)",
		`<b a="<i>">x</b>`:                          "b(x)",
		`< b>x</b >`:                                "b(x)",
		"<\n b a=\"c\">x< /b>":                      "b(x)",
		`< b /><b/ >`:                               "b()b()",
		`<b>R&D & &; &unknown; &#; &#x; &#xg; &#99x; <3</b>`: "b(R&D & &; &unknown; &#; &#x; &#xg; &#99x; <3)",
		`<b>&#x110000;&#xD800;&#9999999999;</b>`:             "b(\ufffd\ufffd\ufffd)",
		`<b>a < c and d<e</b>`:                               "b(a < c and d<e)",
		`<b a="1" a="2" c d=e f=g/>`:                         "b()",
		`<b a="1>x</b>`:                                      "b(x)",
		`<b a='1>x</b><d e='2'>y</d>`:                        "b(x)d(y)",
		`<b a="1><d e="2">x</d></b>`:                         "b(d(x))",
		`<b a=it's>x</b>`:                                    "b(x)",
		`<b a=">">x</b>`:                                     "b(x)",
		`<b>x</b</b>`:                                        "b(x</b)",
		`<!DOCTYPE>`:                                         "",
		`<!DOCTYPE html PUBLIC "-//W3C//DTD" "http://x/">`:   "",
		`<!doctype r SYSTEM 'x.dtd' [ <!ENTITY a SYSTEM "file:///etc/passwd"> ] >`: "",
		`<!ENTITY lol "lol"><b>&lol;</b>`:                                          "b(&lol;)",
		`<b><![CDATA[x</b>`:                                                        "b(x)",
		`<b><![cdata[x]]></b>`:                                                     "b()",
		`<b>x<!-- </b>`:                                                            "b(x<!--)",
		`<b>x<!-- -></b>`:                                                          "b(x)",
		`<b><?php></b>`:                                                            "b()",
		`</a></b><b></d>x</b>`:                                                     "b(x)",
		`<b>x<d>y</b>`:                                                             "b(xd(y))",
		`<B>x</b>`:                                                                 "B(x)",
		`<></><b>x</b>`:                                                            "b(x)",
		"<b>x\x00\x01\xfcy</b>":                                                    "b(xüy)",
	} {
		document, err := Parse([]byte("\ufeff <?xml version='1.0' encoding='x'?><r>"+in+rest), 100)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if r := document.At("r"); len(r) != 1 || outline(r[0]) != want+"c(1)" || !r[0].Closed {
			t.Errorf("%s: %s, want %s", in, outline(document), want)
		}
	}
}

// TestParserBombs checks documents that consist of the start of one construct, on which
// a careless parser needs quadratic time.
func TestParserBombs(t *testing.T) {
	for _, unit := range []string{
		"<", "< ", "&", "&#", "<!--", "<!-- -", "<?", "<![CDATA[", "<![CDATA[]]", "<!", "<!DOCTYPE a [", "<a ", "</", "</a", "<a b=\"", "<a b='\"",
		`<a " b="<a "`, `"<a b=">`, `<a b="><`, "\"'", "&lt", "<a", "<a/", "]]>", "-->", "\x00", "\xff", "</r>",
	} {
		for _, start := range []string{"<r>", "<r a=\""} {
			document := []byte(start + strings.Repeat(unit, (64<<10)/len(unit)))
			if _, err := Parse(document, 100); err != nil && !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%q, %q: %v", start, unit, err)
			}
		}
	}
}

// FuzzParse checks that parsing stops within its limits, that no text is longer
// than the document, and that a well-formed document has the same elements and texts
// as with package encoding/xml.
func FuzzParse(f *testing.F) {
	for _, seed := range wellFormed {
		f.Add([]byte(seed))
	}
	for _, seed := range []string{`<UPnPErrorxmlns="u">`, `<a b="><c d="e">`, "< a>< /a>", "<![CDATA[", "<!-- -- -->", "<? echo ?>", "&#0;&a;", "\xff<"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		document, err := Parse(b, 50)
		if err != nil {
			if !errors.Is(err, backends.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		elements := 0
		var check func(e *Element, depth int) (size int)
		check = func(e *Element, depth int) int {
			size := len(e.Text)
			for _, c := range e.Children {
				elements++
				size += check(c, depth+1)
				if depth > maxDepth || e.Closed && !c.Closed || !c.Closed && c.Text != "" || strings.ContainsAny(c.Name, "/= \t\n:") {
					t.Fatalf("%+v at depth %d", c, depth)
				}
			}
			return size
		}
		if size := check(document, 0); size > 2*len(b) || elements > 50 {
			t.Fatalf("%d bytes of text and %d elements from %d bytes", size, elements, len(b))
		}
		// Package encoding/xml does not read the entities of a DTD, keeps carriage returns
		// as line feeds, and accepts names with a colon at an end.
		if want, err := referenceOutline(string(b)); err == nil && !bytes.ContainsAny(b, "\r") && !bytes.Contains(b, []byte("<!")) {
			if got := outline(document); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	})
}
