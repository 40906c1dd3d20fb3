package ssdp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const igd1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"

// plain is the response of an ordinary router.
const plain = `HTTP/1.1 200 OK
CACHE-CONTROL: max-age=1800
EXT:
LOCATION: http://192.168.1.1:5000/rootDesc.xml
SERVER: TestOS/1.0 UPnP/1.1 TestRouter/1.0
ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1
USN: uuid:00000000-0000-0000-0000-000000000001::urn:schemas-upnp-org:device:InternetGatewayDevice:1
BOOTID.UPNP.ORG: 17
CONFIGID.UPNP.ORG: 1

`

func plainResponse() Response {
	return Response{
		Location: "http://192.168.1.1:5000/rootDesc.xml",
		Target:   igd1,
		USN:      "uuid:00000000-0000-0000-0000-000000000001::" + igd1,
		Server:   "TestOS/1.0 UPnP/1.1 TestRouter/1.0",
		MaxAge:   30 * time.Minute,
		BootID:   ID{17, true},
		ConfigID: ID{1, true},
	}
}

func responseAt(location string) Response {
	r := plainResponse()
	r.Location = location
	return r
}

func TestParseResponse(t *testing.T) {
	const location = "LOCATION: http://192.168.1.1:5000/rootDesc.xml"
	swap := func(old, new string) string {
		if !strings.Contains(plain, old) {
			t.Fatalf("no %q to replace", old)
		}
		return crlf(strings.Replace(plain, old, new, 1))
	}
	age := func(d time.Duration) Response {
		r := plainResponse()
		r.MaxAge = d
		return r
	}
	boot := func(id ID) Response {
		r := plainResponse()
		r.BootID = id
		return r
	}
	server := func(s string) Response {
		r := plainResponse()
		r.Server = s
		return r
	}
	wfa := plainResponse()
	wfa.Target = "urn:schemas-wifialliance-org:device:WFADevice:1"
	for _, tt := range []struct {
		name, datagram string
		want           Response
	}{
		{"ordinary", crlf(plain), plainResponse()},
		{"no space after the colon", swap(location, "location:http://192.168.1.1:5000/x"), responseAt("http://192.168.1.1:5000/x")},
		{"LF only", plain, plainResponse()},
		{"no reason", swap("200 OK", "200"), plainResponse()},
		{"HTTP/1.0", swap("HTTP/1.1", "HTTP/1.0"), plainResponse()},
		{"long reason", swap("200 OK", "200 It is  here"), plainResponse()},
		{"IPv6 loopback", swap("192.168.1.1:5000", "[::1]:1900"), responseAt("http://[::1]:1900/rootDesc.xml")},
		{"loopback", swap("192.168.1.1:5000/rootDesc.xml", "127.0.0.1:5000/"), responseAt("http://127.0.0.1:5000/")},
		{"foreign zone", swap("192.168.1.1:5000/rootDesc.xml", "[fe80::1%3]:5000/"), responseAt("http://[fe80::1%3]:5000/")},
		{"not a URL", swap("http://192.168.1.1:5000/rootDesc.xml", "%zz there"), responseAt("%zz there")},
		{"no blank line", strings.TrimSuffix(crlf(plain), "\r\n"), plainResponse()},
		{"no line end", strings.TrimRight(crlf(plain), "\r\n"), plainResponse()},
		{"long header", swap("EXT:", "EXT: "+strings.Repeat("x", 4096)), plainResponse()},
		{"body", crlf(plain) + "\x00LOCATION: x", plainResponse()},
		{"target of another device", swap("ST: "+igd1, "ST: urn:schemas-wifialliance-org:device:WFADevice:1"), wfa},
		{"repeated header", swap("EXT:", "Location: http://192.168.1.1/first"), responseAt("http://192.168.1.1/first")},
		{"continuation lines", swap("EXT:", "EXT: a\n LOCATION: http://192.168.1.9/\n\tLOCATION: http://192.168.1.9/"), plainResponse()},
		{"spaces", swap(location, "LOCATION \t: \t http://192.168.1.1/ \t"), responseAt("http://192.168.1.1/")},
		{"line without a colon", swap("EXT:", "EXT\n:\n: x"), plainResponse()},
		{"tab in a value", swap("TestOS/1.0 UPnP", "TestOS/1.0\tUPnP"), plainResponse()},
		{"Latin-1", swap("TestOS/1.0 UPnP/1.1 TestRouter/1.0", "M\xfcller"), server("M\xfcller")},
		{"no age", swap("max-age=1800", "no-cache"), age(0)},
		{"age after another directive", swap("max-age=1800", `no-cache="Ext", Max-Age = "120" ,private`), age(2 * time.Minute)},
		{"negative age", swap("1800", "-1"), age(0)},
		{"largest age", swap("1800", "4294967295"), age(4294967295 * time.Second)},
		{"age too large", swap("1800", "4294967296"), age(0)},
		{"boot ID 0", swap("ORG: 17", "ORG: 0"), boot(ID{0, true})},
		{"no boot ID", swap("BOOTID", "X"), boot(ID{})},
		{"boot ID not decimal", swap("ORG: 17", "ORG: 0x11"), boot(ID{})},
		{"boot ID too large", swap("ORG: 17", "ORG: 4294967296"), boot(ID{})},
		{
			"miniupnpd", crlf("HTTP/1.1 200 OK\nCACHE-CONTROL: max-age=120\nST: upnp:rootdevice\n" +
				"USN: uuid:9a1b::upnp:rootdevice\nEXT:\nSERVER: Linux UPnP/1.1 MiniUPnPd/2.3.1\n" +
				"LOCATION: http://192.168.1.1:42357/rootDesc.xml\nOPT: \"http://schemas.upnp.org/upnp/1/0/\"; ns=01\n" +
				"01-NLS: 1\nBOOTID.UPNP.ORG: 1\nCONFIGID.UPNP.ORG: 1337\n\n"),
			Response{
				Location: "http://192.168.1.1:42357/rootDesc.xml", Target: "upnp:rootdevice",
				USN: "uuid:9a1b::upnp:rootdevice", Server: "Linux UPnP/1.1 MiniUPnPd/2.3.1",
				MaxAge: 2 * time.Minute, BootID: ID{1, true}, ConfigID: ID{1337, true},
			},
		},
		{"minimal", "HTTP/1.1 200\nLOCATION:x", Response{Location: "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseResponse([]byte(tt.datagram))
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, tt.want)
		})
	}
}

func TestParseResponseMalformed(t *testing.T) {
	headers := func(n int) string {
		return crlf(strings.Replace(plain, "EXT:\n", strings.Repeat("X: y\n", n), 1))
	}
	for name, datagram := range map[string]string{
		"empty":                  "",
		"blank":                  "\r\n\r\n",
		"binary":                 "\x00\x01\xff\xfe\x80\n\n\x00",
		"no location":            crlf(strings.Replace(plain, "LOCATION", "LOCATIO", 1)),
		"empty location":         crlf(strings.Replace(plain, "http://192.168.1.1:5000/rootDesc.xml", " \t", 1)),
		"first location empty":   crlf(strings.Replace(plain, "EXT:", "LOCATION:", 1)),
		"location after the end": crlf(strings.Replace(plain, "EXT:", "\n", 1)),
		"status 404":             strings.Replace(plain, "200 OK", "404 OK", 1),
		"status 2000":            strings.Replace(plain, "200", "2000", 1),
		"no status":              strings.Replace(plain, " 200 OK", "", 1),
		"HTTP/2.0":               strings.Replace(plain, "HTTP/1.1", "HTTP/2.0", 1),
		"HTTP/1.":                strings.Replace(plain, "HTTP/1.1", "HTTP/1.", 1),
		"not HTTP":               strings.Replace(plain, "HTTP", "ICAP", 1),
		"search":                 crlf("M-SEARCH * HTTP/1.1\nLOCATION: http://192.168.1.1/\n\n"),
		"notification":           crlf(alive),
		"escape":                 strings.Replace(plain, "TestOS", "\x1b[2J", 1),
		"NUL":                    strings.Replace(plain, "TestOS", "\x00", 1),
		"CR inside":              strings.Replace(plain, "TestOS", "a\rLOCATION: b", 1),
		"DEL":                    strings.Replace(plain, "TestOS", "\x7f", 1),
		"C1 control":             strings.Replace(plain, "TestOS", "\u009b", 1),
		"control in a name":      strings.Replace(plain, "EXT", "E\x08T", 1),
		"control in the reason":  strings.Replace(plain, "OK", "\x07", 1),
		"65 headers":             headers(58),
		"too long":               crlf(plain) + strings.Repeat("x", 8<<10),
	} {
		if got, err := ParseResponse([]byte(datagram)); !errors.Is(err, ErrMalformed) || got != (Response{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, datagram := range map[string]string{
		"64 headers": headers(57),
		"8 KiB":      crlf(plain) + strings.Repeat("x", 8<<10-len(crlf(plain))),
	} {
		if _, err := ParseResponse([]byte(datagram)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParseResponseTruncated checks that a truncated response is either rejected, or
// returned with the values up to the cut.
func TestParseResponseTruncated(t *testing.T) {
	for _, whole := range []string{plain, crlf(plain)} {
		end := strings.Index(whole, "LOCATION: h") + len("LOCATION: h")
		for n := range len(whole) {
			got, err := ParseResponse([]byte(whole[:n]))
			if (err == nil) != (n >= end) {
				t.Fatalf("%d of %d bytes: %+v, %v", n, len(whole), got, err)
			}
			want := plainResponse()
			for _, pair := range [][2]string{
				{got.Location, want.Location},
				{got.Target, want.Target},
				{got.USN, want.USN},
				{got.Server, want.Server},
			} {
				if !strings.HasPrefix(pair[1], pair[0]) {
					t.Errorf("%d bytes: %q is not a prefix of %q", n, pair[0], pair[1])
				}
			}
		}
	}
}

func TestUDN(t *testing.T) {
	for usn, want := range map[string]string{
		"uuid:1::upnp:rootdevice": "uuid:1",
		"uuid:1":                  "uuid:1",
		"UUID:A::b::c":            "UUID:A",
		"uuid:::b":                "",
		"uuid:":                   "",
		"uuid":                    "",
		"":                        "",
		"urn:x::uuid:1":           "",
		"::uuid:1":                "",
	} {
		if r, n := (Response{USN: usn}).UDN(), (Notification{USN: usn}).UDN(); r != want || n != want {
			t.Errorf("%q: %q and %q, want %q", usn, r, n, want)
		}
	}
}

// alive, byebye and update are the notifications of a device. They differ in NTS and
// BOOTID.
const alive = `NOTIFY * HTTP/1.1
HOST: 239.255.255.250:1900
CACHE-CONTROL: max-age=1800
LOCATION: http://192.168.1.1:5000/rootDesc.xml
SERVER: TestOS/1.0 UPnP/1.1 TestRouter/1.0
NT: upnp:rootdevice
USN: uuid:00000000-0000-0000-0000-000000000001::upnp:rootdevice
NTS: ssdp:alive
BOOTID.UPNP.ORG: 17
CONFIGID.UPNP.ORG: 1

`

const byebye = `NOTIFY * HTTP/1.1
HOST: 239.255.255.250:1900
NT: upnp:rootdevice
USN: uuid:00000000-0000-0000-0000-000000000001::upnp:rootdevice
NTS: ssdp:byebye
BOOTID.UPNP.ORG: 17
CONFIGID.UPNP.ORG: 1

`

const update = `NOTIFY * HTTP/1.1
HOST: 239.255.255.250:1900
LOCATION: http://192.168.1.1:5000/rootDesc.xml
NT: upnp:rootdevice
NTS: ssdp:update
USN: uuid:00000000-0000-0000-0000-000000000001::upnp:rootdevice
BOOTID.UPNP.ORG: 18
CONFIGID.UPNP.ORG: 1
NEXTBOOTID.UPNP.ORG: 19

`

func aliveNotification() Notification {
	return Notification{
		Kind:     Alive,
		Location: "http://192.168.1.1:5000/rootDesc.xml",
		Type:     "upnp:rootdevice",
		USN:      "uuid:00000000-0000-0000-0000-000000000001::upnp:rootdevice",
		Server:   "TestOS/1.0 UPnP/1.1 TestRouter/1.0",
		MaxAge:   30 * time.Minute,
		BootID:   ID{17, true},
		ConfigID: ID{1, true},
	}
}

// TestParseNotification checks the three kinds. A restart of the device changes BOOTID.
func TestParseNotification(t *testing.T) {
	restarted := aliveNotification()
	restarted.BootID = ID{18, true}
	leaving := aliveNotification()
	leaving.Kind, leaving.Location, leaving.Server, leaving.MaxAge = ByeBye, "", "", 0
	updated := aliveNotification()
	updated.Kind, updated.Server, updated.MaxAge = Update, "", 0
	updated.BootID, updated.NextBootID = ID{18, true}, ID{19, true}
	_, headers, _ := strings.Cut(byebye, "\n")
	for _, tt := range []struct {
		name, datagram string
		want           Notification
	}{
		{"alive", crlf(alive), aliveNotification()},
		{"byebye", crlf(byebye), leaving},
		{"alive after a restart", crlf(strings.Replace(alive, "ORG: 17", "ORG: 18", 1)), restarted},
		{"update", crlf(update), updated},
		{"LF only", alive, aliveNotification()},
		{"lower case, no space", "NOTIFY * HTTP/1.1\n" + strings.ToLower(strings.ReplaceAll(headers, ": ", ":")), leaving},
		{"HTTP/1.0", strings.Replace(byebye, "HTTP/1.1", "HTTP/1.0 ", 1), leaving},
		{"no blank line", strings.TrimRight(byebye, "\n"), leaving},
	} {
		got, err := ParseNotification([]byte(tt.datagram))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		equal(t, got, tt.want)
	}
}

func TestParseNotificationMalformed(t *testing.T) {
	for name, datagram := range map[string]string{
		"empty":                   "",
		"response":                plain,
		"search":                  crlf("M-SEARCH * HTTP/1.1\nNTS: ssdp:alive\nUSN: x\nLOCATION: y\n\n"),
		"method":                  strings.Replace(alive, "NOTIFY", "NOTIFIED", 1),
		"not HTTP":                strings.Replace(alive, " HTTP/1.1", "", 1),
		"no kind":                 strings.Replace(alive, "NTS", "NTX", 1),
		"unknown kind":            strings.Replace(alive, "ssdp:alive", "upnp:propchange", 1),
		"no USN":                  strings.Replace(byebye, "USN", "USX", 1),
		"alive without location":  strings.Replace(alive, "LOCATION", "X", 1),
		"control character":       strings.Replace(alive, "TestOS", "\x1b]0;", 1),
		"too long":                alive + strings.Repeat("x", 8<<10),
		"too many headers":        strings.Replace(alive, "HOST", strings.Repeat("X: y\n", 64)+"HOST", 1),
		"binary":                  "\xff\xfe\x00\n",
		"control character first": "\x00" + alive,
	} {
		if got, err := ParseNotification([]byte(datagram)); !errors.Is(err, ErrMalformed) || got != (Notification{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for n := range len(alive) {
		if n, err := ParseNotification([]byte(alive[:n])); err == nil && n.Kind != Alive {
			t.Errorf("got %+v from a truncated alive", n)
		}
	}
}

func TestString(t *testing.T) {
	got := fmt.Sprint(Alive, ByeBye, Update, NotificationKind(0), ID{}, ID{0, true}, ID{17, true})
	if want := "alive byebye update kind 0 none 0 17"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
