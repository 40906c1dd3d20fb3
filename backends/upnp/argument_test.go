package upnp

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

func TestWireDescription(t *testing.T) {
	for in, want := range map[string]string{
		"gomap":                                "gomap",
		"":                                     "goforward",
		" \t\n":                                "__",
		"   ":                                  "goforward",
		`a"b'c<d>e&f` + "`\\":                  "a_b_c_d_e_f__",
		"Bücher\x00\u202e":                     "B_cher__",
		strings.Repeat("x", 100):               strings.Repeat("x", 63),
		strings.Repeat("x", 62) + " y":         strings.Repeat("x", 62),
		"http-alt 8080/tcp (host.example:1)@#": "http-alt 8080/tcp (host.example:1)@#",
	} {
		if got := wireDescription(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestLease(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 1: "1", time.Second: "1", time.Second + 1: "2", time.Hour: "3600",
		backends.Forever: "0", math.MaxUint32*time.Second + 1: "4294967295", backends.Forever - 1: "4294967295",
	} {
		if got, err := leaseSeconds(d); got != want || err != nil {
			t.Errorf("%v: %s, %v; want %s", d, got, err, want)
		}
	}
	if _, err := leaseSeconds(-1); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("negative: %v", err)
	}
	for s, want := range map[string]time.Duration{
		"3600": time.Hour, " 60\n": time.Minute, "": 0, "-1": 0, "x": 0, "4294967295": math.MaxUint32 * time.Second,
		"4294967296": 0, "99999999999999999999999": 0, "1.5": 0,
	} {
		if got := parseLease(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestBool(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "true": true, "TRUE": true, "Yes": true, " 1 ": true,
		"0": false, "false": false, "no": false, "": false, "2": false, "on fire": false,
	} {
		if parseBool(s) != want {
			t.Errorf("%q: want %v", s, want)
		}
	}
}

func TestHost(t *testing.T) {
	for a, want := range map[netip.Addr]string{
		{}:                                      "",
		netip.MustParseAddr("0.0.0.0"):          "",
		netip.MustParseAddr("::"):               "",
		netip.MustParseAddr("192.0.2.1"):        "192.0.2.1",
		netip.MustParseAddr("::ffff:192.0.2.1"): "192.0.2.1",
		netip.MustParseAddr("fe80::1%eth0"):     "fe80::1",
	} {
		if got := formatHost(a); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
}
