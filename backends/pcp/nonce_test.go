package pcp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

// TestNonceHidden checks that no way to print a nonce, alone or in a message, shows
// its bytes.
func TestNonceHidden(t *testing.T) {
	t.Parallel()
	secret := pcp.Nonce([]byte("ABCDEFGHIJKL"))
	r := pcp.MapRequest{Nonce: secret}
	var out bytes.Buffer
	for _, v := range []any{
		secret, &secret, r, &r,
		[]pcp.Nonce{secret},
		map[pcp.Nonce]pcp.Nonce{secret: secret},
		pcp.MapResponse{Nonce: secret},
		pcp.PeerRequest{Nonce: secret},
		pcp.PeerResponse{Nonce: secret},
		struct{ Nonce pcp.Nonce }{secret},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%08b", "%o", "%c", "%U"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		fmt.Fprintln(&out, v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", v)
		if b, err := json.Marshal(v); err != nil {
			t.Error(err)
		} else {
			out.Write(b)
		}
	}
	out.WriteString(secret.String() + secret.LogValue().String())
	for _, form := range []string{"ABCDEF", "65 66", "65,66", "0x41", "414243", "41 42", "01000001", "101 102", "A B C", "U+0041", "QUJD", "65, 66"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the output has the nonce as %q", form)
		}
	}
	if !strings.Contains(out.String(), "(nonce)") {
		t.Errorf("the placeholder was not printed")
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if string(secret[:]) != "ABCDEFGHIJKL" {
		t.Errorf("the bytes are %q", secret[:])
	}
}

// TestNonce checks that renewals and deletions have the nonce of the mapping. A
// renewal suggests the present endpoint, and a deletion suggests none (RFC 6887,
// sections 11.2.1 and 15).
func TestNonce(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	m, err := b.Map(t.Context(), webRequest)
	if err != nil {
		t.Fatal(err)
	}
	created := lastMapRequest(t, gw)
	if string(created.Nonce[:]) != string(m.Token.Bytes()) || created.Nonce == (pcp.Nonce{}) {
		t.Error("the token is not the nonce")
	}
	if _, err := b.Renew(t.Context(), m, webRequest); err != nil {
		t.Fatal(err)
	}
	if r := lastMapRequest(t, gw); r.Nonce != created.Nonce || r.External != m.External.Addr() || r.ExternalPort != m.External.Port() {
		t.Errorf("renewal suggests %v:%d, the mapping has %v", r.External, r.ExternalPort, m.External)
	}
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if r := lastMapRequest(t, gw); r.Nonce != created.Nonce || r.Lifetime != 0 || r.ExternalPort != 0 || !r.External.IsUnspecified() {
		t.Errorf("deletion suggests %v:%d with lifetime %v", r.External, r.ExternalPort, r.Lifetime)
	}
	m.Token = backends.Token{}
	if err := b.Unmap(t.Context(), m); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("deletion without a nonce: %v", err)
	}
}

// TestDerivedNonce checks that another process with the same key can delete a
// mapping of which it has only the internal port, and that a process with another
// key cannot.
func TestDerivedNonce(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	openWithKey := func(key string) *pcp.Backend {
		return open(t, pcp.Config{Gateway: gw.Addr(), Nonce: func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce([]byte(key), gateway, p, internal)
		}})
	}
	if _, err := openWithKey("mine").Map(t.Context(), webRequest); err != nil {
		t.Fatal(err)
	}
	mapping := backends.Mapping{Protocol: webRequest.Protocol, Internal: webRequest.Internal}
	if err := openWithKey("theirs").Unmap(t.Context(), mapping); !errors.Is(err, backends.ErrNotAuthorized) || len(gw.Table()) != 1 {
		t.Errorf("with another key: %v, the gateway has %v", err, gw.Table())
	}
	mapping.Internal = netip.MustParseAddrPort("127.0.0.1:8080") // this host, by its address
	if err := openWithKey("mine").Unmap(t.Context(), mapping); err != nil || len(gw.Table()) != 0 {
		t.Errorf("with the key: %v, the gateway has %v", err, gw.Table())
	}
}
