package upnp

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
)

// The longest descriptions: what all devices take, and what we read.
const (
	maxWireDescription = 63
	maxText            = 256
)

// wireDescription is what devices are told in place of s: some refuse blank
// descriptions, quotes, markup, or more than 63 bytes, and some write them
// unescaped into their own XML.
func wireDescription(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("\"'`<>&\\", r) {
			return '_'
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	s = strings.TrimSpace(s[:min(len(s), maxWireDescription)])
	if s == "" {
		return "goforward"
	}
	return s
}

// printable is a text of the device as it may be shown: one line, without
// control characters, of at most 256 bytes.
func printable(s string) string {
	s = strings.TrimSpace(s)
	var b strings.Builder
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			r = '?'
		}
		if b.Len()+len(string(r)) > maxText {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// protocolName is how the services that map ports call a protocol.
func protocolName(p backends.Protocol) (string, error) {
	switch p {
	case backends.TCP:
		return "TCP", nil
	case backends.UDP:
		return "UDP", nil
	case 0:
		return "", fmt.Errorf("%w: no protocol", backends.ErrInvalid)
	}
	return "", fmt.Errorf("%w: UPnP maps TCP and UDP, not %v", backends.ErrUnsupported, p)
}

func parseProtocol(s string) (backends.Protocol, error) {
	switch s = strings.TrimSpace(s); {
	case strings.EqualFold(s, "TCP"):
		return backends.TCP, nil
	case strings.EqualFold(s, "UDP"):
		return backends.UDP, nil
	}
	return 0, fmt.Errorf("%w: protocol %q", backends.ErrMalformed, clip(s))
}

// leaseSeconds is a lease in seconds, rounded up; Forever is 0.
func leaseSeconds(d time.Duration) (string, error) {
	if d < 0 {
		return "", fmt.Errorf("%w: negative lease %v", backends.ErrInvalid, d)
	}
	if d == backends.Forever {
		return "0", nil
	}
	s := d / time.Second
	if d%time.Second != 0 {
		s++
	}
	return strconv.FormatInt(min(int64(s), math.MaxUint32), 10), nil
}

// parseLease reads seconds. What is not a number was not told.
func parseLease(s string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

func parsePort(name, s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%w: %s %q", backends.ErrMalformed, name, clip(s))
	}
	return uint16(n), nil
}

func formatPort(p uint16) string { return strconv.Itoa(int(p)) }

// parseAddr reads an address; what is none, or names no host, is the zero Addr,
// and so is one with a zone: that can be any text, and would get where addresses
// go.
func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.IsUnspecified() || a.Zone() != "" {
		return netip.Addr{}
	}
	return a.Unmap()
}

// formatHost writes an address; the zero Addr is the wildcard, an empty
// element: some devices misread 0.0.0.0.
func formatHost(a netip.Addr) string {
	if !a.IsValid() || a.IsUnspecified() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// parseBool reads what devices write for a boolean; anything else is false.
func parseBool(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "true", "yes":
		return true
	}
	return false
}

func formatBool(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// clip bounds what an error quotes of an answer.
func clip(s string) string { return s[:min(len(s), 32)] }
