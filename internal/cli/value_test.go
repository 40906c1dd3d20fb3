package cli

import (
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
