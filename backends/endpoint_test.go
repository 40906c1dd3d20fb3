package backends_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
)

func TestEndpoint(t *testing.T) {
	for want, at := range map[string]netip.AddrPort{
		"45.45.45.1:8080":    netip.MustParseAddrPort("45.45.45.1:8080"),
		"[2001:db8::1]:8080": netip.MustParseAddrPort("[2001:db8::1]:8080"),
		":8080":              netip.AddrPortFrom(netip.Addr{}, 8080),
		"45.45.45.1:0":       netip.MustParseAddrPort("45.45.45.1:0"),
		"not mapped":         {},
	} {
		e := backends.Endpoint{AddrPort: at}
		for _, got := range []string{e.String(), fmt.Sprint(e), fmt.Sprintf("%v", &e), fmt.Sprintf("%+v", e)} {
			if got != want {
				t.Errorf("%#v prints as %q, want %q", at, got, want)
			}
		}
		if nested := fmt.Sprintf("%v", struct{ E backends.Endpoint }{e}); nested != "{"+want+"}" {
			t.Errorf("in a struct it prints as %q", nested)
		}
		b, err := json.Marshal(e)
		var back backends.Endpoint
		if err := errors.Join(err, json.Unmarshal(b, &back)); err != nil || back != e {
			t.Errorf("%v: %s was decoded as %v, %v", e, b, back, err)
		}
		if err := back.UnmarshalText([]byte(want)); err != nil || back != e {
			t.Errorf("%q was parsed as %v, %v", want, back, err)
		}
	}
	for _, text := range []string{"8080", ":", ":99999", "a:1", "45.45.45.1"} {
		e := backends.Endpoint{AddrPort: netip.MustParseAddrPort("1.2.3.4:5")}
		if err := e.UnmarshalText([]byte(text)); !errors.Is(err, backends.ErrInvalid) || e.Port() != 5 {
			t.Errorf("%q: %v, %v", text, e, err)
		}
	}
}
