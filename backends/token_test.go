package backends_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/quick"

	"github.com/natforward/goforward/backends"
)

// TestTokenBytes checks that a Token has its own copy of the bytes, and that tokens
// with equal bytes are equal.
func TestTokenBytes(t *testing.T) {
	if err := quick.Check(func(b []byte) bool {
		original := bytes.Clone(b)
		token := backends.NewToken(b)
		for _, changed := range [][]byte{b, token.Bytes()} {
			for i := range changed {
				changed[i]++
			}
		}
		return bytes.Equal(token.Bytes(), original) && token == backends.NewToken(original) &&
			token.IsZero() == (len(original) == 0) && (len(original) == 0 || token != backends.NewToken(b))
	}, nil); err != nil {
		t.Error(err)
	}
	var zero backends.Token
	if !zero.IsZero() || zero.Bytes() != nil || zero != backends.NewToken(nil) || zero != backends.NewToken([]byte{}) {
		t.Errorf("the zero Token has the bytes %v", zero.Bytes())
	}
	if one := backends.NewToken([]byte{0}); one.IsZero() || one == zero {
		t.Error("a Token of a zero byte is the zero Token")
	}
}

// TestTokenHidden checks that no way to print a Token, alone or in another value,
// shows its bytes.
func TestTokenHidden(t *testing.T) {
	const text = "ABCDEFGHIJKL"
	token := backends.NewToken([]byte(text))
	m := backends.Mapping{Backend: "pcp", Protocol: backends.TCP, Token: token}
	type hidden struct{ m backends.Mapping }
	type deep struct {
		p    *backends.Mapping
		list []backends.Mapping
		any  any
	}
	secret := []string{text, hex.EncodeToString([]byte(text)), base64.StdEncoding.EncodeToString([]byte(text))}
	for _, format := range []string{"% x", "%d", "%#v", "%o", "%b", "%#x", "%#o", "%U"} {
		secret = append(secret, strings.Trim(strings.TrimPrefix(fmt.Sprintf(format, []byte(text)), "[]byte"), "[]{}"))
	}
	for name, v := range map[string]any{
		"Token": token, "*Token": &token, "Mapping": m, "*Mapping": &m, "Entry": backends.Entry{Mapping: m},
		"list": []backends.Mapping{m}, "map": map[backends.Token]backends.Token{token: token},
		"unexported": hidden{m}, "pointer to unexported": &hidden{m}, "deep": deep{&m, []backends.Mapping{m}, m},
	} {
		var out bytes.Buffer
		for verb := 'A'; verb <= 'z'; verb++ {
			for _, flags := range []string{"", "+", "#", " ", "0", "-20", ".3"} {
				fmt.Fprintf(&out, "%"+flags+string(verb)+"\n", v)
			}
		}
		fmt.Fprintln(&out, v)
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		out.Write(encoded)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("JSON", "value", v)
		printed := strings.ToLower(out.String())
		for _, s := range secret {
			if strings.Contains(printed, strings.ToLower(s)) {
				t.Errorf("%s prints the bytes as %s", name, s)
			}
		}
	}
	if got := token.LogValue().String(); got != "(token)" {
		t.Errorf("logged %q", got)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb+verb, token, backends.Token{}); got != "(token)(no token)" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
	encoded, err := json.Marshal([]backends.Token{token, {}})
	if err != nil || string(encoded) != `["(token)","(no token)"]` {
		t.Errorf("JSON: %s, %v", encoded, err)
	}
	var back []backends.Token
	if err := json.Unmarshal(encoded, &back); err != nil || len(back) != 2 || !back[0].IsZero() || !back[1].IsZero() {
		t.Errorf("decoded: %v, %v; want tokens without bytes", back, err)
	}
	if err := json.Unmarshal([]byte(`["AQID"]`), &back); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("a Token was decoded from its bytes: %v", err)
	}
}
