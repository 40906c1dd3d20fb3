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
		"1": time.Second, "3600": time.Hour, "90m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond, "1.5": 1500 * time.Millisecond,
		"2d": 2 * day, "1w": 7 * day, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour, "1w2d3h4m5s6ms": 9*day + 3*time.Hour + 4*time.Minute + 5006*time.Millisecond,
		"4294967295": 4294967295 * time.Second,
		"forever":    backends.Forever, "Forever": backends.Forever,
	} {
		if got, err := parseLifetime(s); got != want || err != nil {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
	for want, all := range map[string][]string{
		"want more than 0; to delete a mapping, use goforward unmap": {"0", "0s", "0.0", "0d", "-1", "-1s", "-5d", "0.0000000001"},
		"want seconds, or a duration such as 500ms, 90m, 1d12h or 2w, or forever": {
			"", "1 h", "for ever", "soon", "1e9", "NaN", "Inf", "+5", "0x10", "1_000", ".", "1.2.3", "1d5", "5h-1h", "h", "dh", "1D", "1y", "1,5", "١",
		},
		"want at most 4294967295 seconds (about 136 years), or forever": {
			"4294967296", "4294967295.1", "1193047h", "99999999999h", "50000d", "9223372036854775808", strings.Repeat("9", 400), strings.Repeat("9", 400) + "d", "10000000000d1h",
		},
	} {
		for _, s := range all {
			if got, err := parseLifetime(s); err == nil || err.Error() != want {
				t.Errorf("%q: %v, %v, want the error %q", s, got, err, want)
			}
		}
	}
}

func TestParseSeconds(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"0.5": 500 * time.Millisecond, ".25": 250 * time.Millisecond, "5": 5 * time.Second, "1m30s": 90 * time.Second, "365d": 365 * day, "0.1": 100 * time.Millisecond,
		"0": 0, "-1": 0, "": 0, "forever": 0, "366d": 0, "1e9": 0, "NaN": 0, "9999999999999999999": 0,
	} {
		if got, err := parseSeconds(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
}

// FuzzParseDuration checks that an accepted duration is positive, and equal to the duration of
// the standard library if that accepts it too.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"5", "0.5", "1d12h", "2w", "90m", "1e9", "-1", "500ms", "9999999999999h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseDuration(s)
		if err != nil {
			return
		}
		want, stdErr := time.ParseDuration(s)
		if got <= 0 || stdErr == nil && (got-want).Abs() > 10*time.Microsecond {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	})
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
