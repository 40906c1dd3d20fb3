package cli

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

func TestParseLifetime(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"1": time.Second, "3600": time.Hour, "90m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond,
		"4294967295": 4294967295 * time.Second, "forever": backends.Forever,
		"0": 0, "0s": 0, "-1": 0, "-1s": 0, "": 0, "1 h": 0, "4294967296": 0, "1193047h": 0, "99999999999h": 0, "for ever": 0,
	} {
		if got, err := parseLifetime(s); got != want && err == nil || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestParseIGD(t *testing.T) {
	t.Parallel()
	for s, valid := range map[string]bool{
		"http://192.168.1.1:5000/rootDesc.xml": true, "http://192.168.1.1": true, "http://[fe80::1%25eth0]:49152/igd.xml": true, "http://[::1]/": true,
		"": false, "192.168.1.1:5000": false, "https://192.168.1.1/": false, "http://router/": false, "http://192.168.1.1:x/": false,
		"http://192.168.1.1:0/": false, "http://u:p@192.168.1.1/": false, "http://0.0.0.0/": false, "http://239.255.255.250:1900/": false,
		"ftp://192.168.1.1/": false, "http:192.168.1.1": false, "http://": false, "//192.168.1.1/": false,
	} {
		got, err := parseIGD(s)
		if (err == nil) != valid || valid && got != s {
			t.Errorf("%q: %q, %v", s, got, err)
		}
		if host, err := igdHost(got); valid && (err != nil || !host.IsValid()) {
			t.Errorf("%q: %v, %v", s, host, err)
		}
	}
}

// TestNamedGateway checks that the host of --igd-url is the gateway if --gateway is not set.
func TestNamedGateway(t *testing.T) {
	t.Parallel()
	gateway := netip.MustParseAddrPort("192.0.2.1:5351")
	for _, tt := range []struct {
		settings settings
		want     string
	}{
		{settings{}, ""},
		{settings{gateway: gateway}, "192.0.2.1:5351"},
		{settings{igd: "http://192.0.2.2:5000/"}, "192.0.2.2"},
		{settings{igd: "http://[::ffff:192.0.2.2]:5000/"}, "192.0.2.2"},
		{settings{igd: "http://192.0.2.2:5000/", gateway: gateway}, "192.0.2.1:5351"},
	} {
		if got := endpointText(tt.settings.namedGateway()); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.settings, got, tt.want)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"192.168.1.1": "192.168.1.1", "192.168.1.1:5351": "192.168.1.1:5351", "::ffff:192.168.1.1": "192.168.1.1",
		"fe80::1%eth0": "fe80::1%eth0", "[::1]:7": "[::1]:7", "[::1]": "::1",
		"": "", "router": "", "192.168.1": "", "192.168.1.1:": "", "192.168.1.1:x": "", ":5351": "",
	} {
		got, err := parseEndpoint(s)
		if err == nil && endpointText(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: %v, %v, want %q", s, got, err, want)
		}
	}
}

var (
	tcp  = []backends.Protocol{backends.TCP}
	udp  = []backends.Protocol{backends.UDP}
	both = []backends.Protocol{backends.TCP, backends.UDP}
)

// TestSplitCommand checks that words are split as in a POSIX shell, except for variables,
// patterns and operators.
func TestSplitCommand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{`a`, []string{"a"}},
		{"  a\tb\n c ", []string{"a", "b", "c"}},
		{`a 'b c' d`, []string{"a", "b c", "d"}},
		{`a "b c" d`, []string{"a", "b c", "d"}},
		{`a 'b "c" \d'`, []string{"a", `b "c" \d`}},
		{`a "b 'c' \"d\" \\ \e"`, []string{"a", `b 'c' "d" \ \e`}},
		{`a b\ c \'d \"e \\f \g`, []string{"a", "b c", "'d", `"e`, `\f`, "g"}},
		{`a '' "" b`, []string{"a", "", "", "b"}},
		{`a"b"'c'd`, []string{"abcd"}},
		{`a $HOME *.go | b; c`, []string{"a", "$HOME", "*.go", "|", "b;", "c"}},
		{`'C:\Program Files\x.exe' ü`, []string{`C:\Program Files\x.exe`, "ü"}},
		{`\a`, []string{"a"}},
		{`a \ `, []string{"a", " "}},
	} {
		got, err := splitCommand(tt.in)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for in, want := range map[string]string{
		"":       "no command",
		" \t\n":  "no command",
		`''`:     "no command",
		`"" a`:   "no command",
		`a 'b`:   "quote ' is not closed",
		`a "b'c`: `quote " is not closed`,
		`a "b\"`: `quote " is not closed`,
		`a b\`:   "last backslash",
		`a "b\`:  `quote " is not closed`,
	} {
		if got, err := splitCommand(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
}

func FuzzSplitCommand(f *testing.F) {
	for _, s := range []string{`a b`, `a 'b c' "d \" e" \f`, `'`, `"\`, `''`, "a\x00b \xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitCommand(s)
		if err == nil && (len(words) == 0 || words[0] == "") {
			t.Errorf("%q: %q", s, words)
		}
		if !strings.Contains(s, "'") { // in single quotes, the text stays unchanged
			words, err := splitCommand("a '" + s + "' b")
			if valid := strings.ToValidUTF8(s, "\ufffd"); valid == s && (err != nil || !slices.Equal(words, []string{"a", s, "b"})) {
				t.Errorf("%q in quotes: %q, %v", s, words, err)
			}
		}
	})
}
