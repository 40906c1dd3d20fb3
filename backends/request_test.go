package backends_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

func TestProtocol(t *testing.T) {
	for text, want := range map[string]backends.Protocol{
		"tcp": 6, "TCP": 6, "Udp": 17, "sctp": 132, "dccp": 33, "udplite": 136, "6": 6, "255": 255, "1": 1,
	} {
		if got, err := backends.ParseProtocol(text); err != nil || got != want {
			t.Errorf("ParseProtocol(%q): %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "256", "-1", "tcp ", "both", "6.0"} {
		if got, err := backends.ParseProtocol(text); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("ParseProtocol(%q): %d, %v; want ErrInvalid", text, got, err)
		}
	}
	for p := backends.Protocol(1); p != 0; p++ {
		text, err := json.Marshal(p)
		var back backends.Protocol
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if err != nil || back != p {
			t.Errorf("%d was encoded as %s and decoded as %d, %v", p, text, back, err)
		}
	}
}

func TestRequestCheck(t *testing.T) {
	valid := backends.Request{Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 80)}
	if err := valid.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*backends.Request){
		"protocol 0":                     func(r *backends.Request) { r.Protocol = 0 },
		"port 0":                         func(r *backends.Request) { r.Internal = netip.MustParseAddrPort("192.0.2.1:0") },
		"exact, but no port":             func(r *backends.Request) { r.Exact = true },
		"negative lifetime":              func(r *backends.Request) { r.Lifetime = -time.Second },
		"remote port without an address": func(r *backends.Request) { r.Remote = netip.AddrPortFrom(netip.Addr{}, 80) },
	} {
		r := valid
		change(&r)
		if err := r.Check(); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
