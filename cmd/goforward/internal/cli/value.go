package cli

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// value is a flag whose text has a form of its own.
type value[T any] struct {
	to    *T
	kind  string
	parse func(string) (T, error)
	text  string
}

func (v *value[T]) String() string { return v.text }
func (v *value[T]) Type() string   { return v.kind }

func (v *value[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.to, v.text = t, s
	return nil
}

// parseEndpoint reads an address with or without a port, which is 0 then.
func parseEndpoint(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	addr, err := parseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("want an IP address, or ADDRESS:PORT")
	}
	return netip.AddrPortFrom(addr, 0), nil
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("want an IP address")
	}
	return addr.Unmap(), nil
}

// parseIGD reads the URL of a device description, as the backend takes it.
func parseIGD(s string) (string, error) {
	b, err := upnp.New(upnp.Config{URL: s})
	if err != nil || s == "" {
		return "", fmt.Errorf("want http://ADDRESS:PORT/PATH, with an IP address")
	}
	return s, b.Close()
}

// igdHost is the address in such a URL.
func igdHost(s string) (netip.Addr, error) {
	u, err := url.Parse(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(u.Hostname())
}

// parseSeconds reads plain seconds, as natpmpc does, or a duration.
func parseSeconds(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if n, numErr := strconv.ParseUint(s, 10, 32); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("want seconds, or a duration such as 90m")
	case d <= 0:
		return 0, fmt.Errorf("want more than nothing")
	}
	return d, nil
}

// parseLifetime is parseSeconds with what the protocols cannot carry left out.
// Zero deletes on their wire, which here is unmap's to do.
func parseLifetime(s string) (time.Duration, error) {
	if s == "forever" {
		return backends.Forever, nil
	}
	d, err := parseSeconds(s)
	const longest = math.MaxUint32 * time.Second
	switch {
	case s == "0":
		return 0, fmt.Errorf("want more than nothing: to take a mapping away, goforward unmap")
	case err == nil && d > longest:
		return 0, fmt.Errorf("want at most %d seconds, or forever", uint32(math.MaxUint32))
	}
	return d, err
}

// parseProtocols reads the name or number of a protocol, or both, which is TCP
// and UDP as a unit.
func parseProtocols(s string) ([]backends.Protocol, error) {
	if strings.EqualFold(s, "both") {
		return []backends.Protocol{backends.TCP, backends.UDP}, nil
	}
	p, err := backends.ParseProtocol(s)
	if err != nil {
		return nil, fmt.Errorf("no protocol %q: want tcp, udp, both, or another's name or number", s)
	}
	return []backends.Protocol{p}, nil
}
