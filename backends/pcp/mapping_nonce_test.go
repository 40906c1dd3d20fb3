package pcp_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends/pcp"
)

// However a nonce is printed, alone or in a message, its bytes are not.
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
			t.Errorf("the nonce is there as %q", form)
		}
	}
	if !strings.Contains(out.String(), "(nonce)") {
		t.Errorf("nothing was printed in its place")
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if string(secret[:]) != "ABCDEFGHIJKL" {
		t.Errorf("the bytes are %q", secret[:])
	}
}
