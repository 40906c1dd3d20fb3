package forward

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// incomparable is a backend that cannot be a map's key.
type incomparable struct {
	backends.Backend
	_ []int
}

func TestConfigInvalid(t *testing.T) {
	for name, config := range map[string]*Config{
		"negative wait":      {DiscoveryTimeout: -1},
		"negative timeout":   {RequestTimeout: -1},
		"negative lifetime":  {Lifetime: -1},
		"unknown protocol":   {Protocols: []string{"natpmp", "smoke"}},
		"no address":         {Gateway: netip.AddrPortFrom(netip.Addr{}, 5351)},
		"unspecified":        {Gateway: netip.MustParseAddrPort("0.0.0.0:5351")},
		"families":           {Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Source: netip.MustParseAddr("2001:db8::1")},
		"nil backend":        {Backends: []backends.Backend{nil}},
		"incomparable value": {Backends: []backends.Backend{incomparable{}}},
	} {
		if _, err := New(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for name, config := range map[string]*Config{"nil": nil, "zero": {}} {
		f, err := New(config)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.config.DiscoveryTimeout != DefaultDiscoveryTimeout || f.config.RequestTimeout != DefaultRequestTimeout || f.config.Lifetime != DefaultLifetime || len(f.config.Protocols) == 0 {
			t.Errorf("%s: config %+v", name, f.config)
		}
		_ = f.Close()
	}
}

// Every kind of error has advice, and the gravest names the whole.
func TestErrorKinds(t *testing.T) {
	for i, kind := range kinds {
		for _, lesser := range kinds[i:] {
			var e *Error
			err := newError([]error{lesser.err, kind.err}, true)
			if !errors.As(err, &e) || !errors.Is(e.Kind, kind.err) || !errors.Is(err, lesser.err) || errors.Is(err, ErrNoGateway) {
				t.Errorf("%v and %v: %v", lesser.err, kind.err, err)
			}
			if kind.advice == "" || !strings.HasSuffix(err.Error(), "\n  → "+kind.advice) {
				t.Errorf("%v does not end in the advice %q", err, kind.advice)
			}
		}
	}
	if err := newError([]error{backends.ErrNoReply}, false); !errors.Is(err, ErrNoGateway) {
		t.Errorf("silence of an unnamed gateway: %v", err)
	}
	if err := newError(nil, true); err != nil {
		t.Errorf("no attempts: %v", err)
	}
}
