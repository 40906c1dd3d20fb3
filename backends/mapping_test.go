package backends_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

func TestMapping(t *testing.T) {
	granted := time.Now()
	m := backends.Mapping{
		Protocol: backends.UDP, Internal: netip.MustParseAddrPort("192.0.2.1:80"),
		Lifetime: time.Hour, Granted: granted,
	}
	if got := m.Expires(); !got.Equal(granted.Add(time.Hour)) {
		t.Errorf("expires at %v", got)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	m.Lifetime = backends.Forever
	if got := m.Expires(); !got.IsZero() {
		t.Errorf("a permanent mapping expires at %v", got)
	}
	if err := (backends.Mapping{}).Check(); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("the zero mapping: %v, want ErrInvalid", err)
	}
}

func TestMappingString(t *testing.T) {
	m := backends.Mapping{
		Backend: "natpmp", Protocol: backends.TCP, Lifetime: 2 * time.Hour,
		Internal: netip.MustParseAddrPort("192.168.1.2:80"), External: netip.MustParseAddrPort("45.45.45.1:8080"),
		Token: backends.NewToken([]byte("secret")),
	}
	hidden, forever := m, m
	hidden.External = netip.AddrPortFrom(netip.Addr{}, 8080)
	forever.Lifetime, forever.Backend = backends.Forever, "upnp"
	forever.Remote = netip.MustParseAddrPort("198.51.100.7:0")
	for want, m := range map[string]backends.Mapping{
		"tcp 45.45.45.1:8080 → 192.168.1.2:80, natpmp, 2h0m0s":                          m,
		"tcp :8080 → 192.168.1.2:80, natpmp, 2h0m0s":                                    hidden,
		"tcp 45.45.45.1:8080 → 192.168.1.2:80, only from 198.51.100.7, upnp, permanent": forever,
		"no mapping": {},
	} {
		if got := fmt.Sprint(m); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
