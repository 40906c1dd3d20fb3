package ssdp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const igd1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"

// plain is an ordinary router's answer.
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

func plainAnswer() Response {
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

func located(location string) Response {
	a := plainAnswer()
	a.Location = location
	return a
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
		a := plainAnswer()
		a.MaxAge = d
		return a
	}
	boot := func(id ID) Response {
		a := plainAnswer()
		a.BootID = id
		return a
	}
	server := func(s string) Response {
		a := plainAnswer()
		a.Server = s
		return a
	}
	wfa := plainAnswer()
	wfa.Target = "urn:schemas-wifialliance-org:device:WFADevice:1"
	for _, tt := range []struct {
		name, datagram string
		want           Response
	}{
		{"ordinary", crlf(plain), plainAnswer()},
		{"no space after the colon", swap(location, "location:http://192.168.1.1:5000/x"), located("http://192.168.1.1:5000/x")},
		{"LF only", plain, plainAnswer()},
		{"no reason", swap("200 OK", "200"), plainAnswer()},
		{"HTTP/1.0", swap("HTTP/1.1", "HTTP/1.0"), plainAnswer()},
		{"long reason", swap("200 OK", "200 It is  here"), plainAnswer()},
		{"IPv6 loopback", swap("192.168.1.1:5000", "[::1]:1900"), located("http://[::1]:1900/rootDesc.xml")},
		{"loopback", swap("192.168.1.1:5000/rootDesc.xml", "127.0.0.1:5000/"), located("http://127.0.0.1:5000/")},
		{"foreign zone", swap("192.168.1.1:5000/rootDesc.xml", "[fe80::1%3]:5000/"), located("http://[fe80::1%3]:5000/")},
		{"not a URL", swap("http://192.168.1.1:5000/rootDesc.xml", "%zz there"), located("%zz there")},
		{"no blank line", strings.TrimSuffix(crlf(plain), "\r\n"), plainAnswer()},
		{"no line end", strings.TrimRight(crlf(plain), "\r\n"), plainAnswer()},
		{"long header", swap("EXT:", "EXT: "+strings.Repeat("x", 4096)), plainAnswer()},
		{"body", crlf(plain) + "\x00LOCATION: x", plainAnswer()},
		{"of another device", swap("ST: "+igd1, "ST: urn:schemas-wifialliance-org:device:WFADevice:1"), wfa},
		{"first of two", swap("EXT:", "Location: http://192.168.1.1/first"), located("http://192.168.1.1/first")},
		{"folded", swap("EXT:", "EXT: a\n LOCATION: http://192.168.1.9/\n\tLOCATION: http://192.168.1.9/"), plainAnswer()},
		{"spaces", swap(location, "LOCATION \t: \t http://192.168.1.1/ \t"), located("http://192.168.1.1/")},
		{"line without a colon", swap("EXT:", "EXT\n:\n: x"), plainAnswer()},
		{"tab in a value", swap("TestOS/1.0 UPnP", "TestOS/1.0\tUPnP"), plainAnswer()},
		{"Latin-1", swap("TestOS/1.0 UPnP/1.1 TestRouter/1.0", "M\xfcller"), server("M\xfcller")},
		{"no age", swap("max-age=1800", "no-cache"), age(0)},
		{"age among others", swap("max-age=1800", `no-cache="Ext", Max-Age = "120" ,private`), age(2 * time.Minute)},
		{"negative age", swap("1800", "-1"), age(0)},
		{"greatest age", swap("1800", "4294967295"), age(4294967295 * time.Second)},
		{"age beyond it", swap("1800", "4294967296"), age(0)},
		{"boot 0", swap("ORG: 17", "ORG: 0"), boot(ID{0, true})},
		{"boot absent", swap("BOOTID", "X"), boot(ID{})},
		{"boot unreadable", swap("ORG: 17", "ORG: 0x11"), boot(ID{})},
		{"boot too great", swap("ORG: 17", "ORG: 4294967296"), boot(ID{})},
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
		{"barest", "HTTP/1.1 200\nLOCATION:x", Response{Location: "x"}},
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
		"notice":                 crlf(alive),
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

// What is cut short is either refused, or read as far as it goes.
func TestParseResponseTruncated(t *testing.T) {
	for _, whole := range []string{plain, crlf(plain)} {
		end := strings.Index(whole, "LOCATION: h") + len("LOCATION: h")
		for n := range len(whole) {
			got, err := ParseResponse([]byte(whole[:n]))
			if (err == nil) != (n >= end) {
				t.Fatalf("%d of %d bytes: %+v, %v", n, len(whole), got, err)
			}
			want := plainAnswer()
			for _, pair := range [][2]string{
				{got.Location, want.Location},
				{got.Target, want.Target},
				{got.USN, want.USN},
				{got.Server, want.Server},
			} {
				if !strings.HasPrefix(pair[1], pair[0]) {
					t.Errorf("%d bytes: %q is no beginning of %q", n, pair[0], pair[1])
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
		if a, n := (Response{USN: usn}).UDN(), (Notification{USN: usn}).UDN(); a != want || n != want {
			t.Errorf("%q: %q and %q, want %q", usn, a, n, want)
		}
	}
}

// Announcements as a device sends them: NTS and BOOTID vary.
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

func aliveNotice() Notification {
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

// A device that restarts says so by its BOOTID.
func TestParseNotification(t *testing.T) {
	again := aliveNotice()
	again.BootID = ID{18, true}
	gone := aliveNotice()
	gone.Kind, gone.Location, gone.Server, gone.MaxAge = ByeBye, "", "", 0
	renamed := aliveNotice()
	renamed.Kind, renamed.Server, renamed.MaxAge = Update, "", 0
	renamed.BootID, renamed.NextBootID = ID{18, true}, ID{19, true}
	_, headers, _ := strings.Cut(byebye, "\n")
	for _, tt := range []struct {
		name, datagram string
		want           Notification
	}{
		{"alive", crlf(alive), aliveNotice()},
		{"byebye", crlf(byebye), gone},
		{"alive again", crlf(strings.Replace(alive, "ORG: 17", "ORG: 18", 1)), again},
		{"update", crlf(update), renamed},
		{"LF only", alive, aliveNotice()},
		{"lower case, no space", "NOTIFY * HTTP/1.1\n" + strings.ToLower(strings.ReplaceAll(headers, ": ", ":")), gone},
		{"HTTP/1.0", strings.Replace(byebye, "HTTP/1.1", "HTTP/1.0 ", 1), gone},
		{"no blank line", strings.TrimRight(byebye, "\n"), gone},
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
		"empty":           "",
		"answer":          plain,
		"search":          crlf("M-SEARCH * HTTP/1.1\nNTS: ssdp:alive\nUSN: x\nLOCATION: y\n\n"),
		"method":          strings.Replace(alive, "NOTIFY", "NOTIFIED", 1),
		"not HTTP":        strings.Replace(alive, " HTTP/1.1", "", 1),
		"no kind":         strings.Replace(alive, "NTS", "NTX", 1),
		"unknown kind":    strings.Replace(alive, "ssdp:alive", "upnp:propchange", 1),
		"no USN":          strings.Replace(byebye, "USN", "USX", 1),
		"alive, nowhere":  strings.Replace(alive, "LOCATION", "X", 1),
		"control":         strings.Replace(alive, "TestOS", "\x1b]0;", 1),
		"too long":        alive + strings.Repeat("x", 8<<10),
		"too many":        strings.Replace(alive, "HOST", strings.Repeat("X: y\n", 64)+"HOST", 1),
		"binary":          "\xff\xfe\x00\n",
		"control at once": "\x00" + alive,
	} {
		if got, err := ParseNotification([]byte(datagram)); !errors.Is(err, ErrMalformed) || got != (Notification{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for n := range len(alive) {
		if n, err := ParseNotification([]byte(alive[:n])); err == nil && n.Kind != Alive {
			t.Errorf("%+v of a prefix", n)
		}
	}
}

func TestStrings(t *testing.T) {
	got := fmt.Sprint(Alive, ByeBye, Update, NotificationKind(0), ID{}, ID{0, true}, ID{17, true})
	if want := "alive byebye update kind 0 none 0 17"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
