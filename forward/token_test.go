package forward_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// pcpMapping enables a mapping by PCP, and returns the nonce that the gateway got.
func pcpMapping(t *testing.T, config forward.Config) (*gatewaytest.Gateway, *forward.Forwarder, *forward.Mapping, []byte) {
	t.Helper()
	gw, f := start(t, config, gatewaytest.Config{Protocols: []string{"pcp"}})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.Backend() != "pcp" {
		t.Fatal(m, err)
	}
	const header, size = 24, 12 // RFC 6887, sections 7.1 and 11.1
	for _, r := range gw.Requests() {
		if r.Op == "map" && len(r.Raw) >= header+size {
			return gw, f, m, r.Raw[header : header+size]
		}
	}
	t.Fatal("the gateway got no MAP request")
	return nil, nil, nil, nil
}

// spoilToken overwrites the token of a mapping as far as its type lets a caller do
// so: in place if it is a slice, and in what a method Bytes returns.
func spoilToken(m backends.Mapping) {
	token := reflect.ValueOf(m).FieldByName("Token")
	all := []reflect.Value{token}
	if method := token.MethodByName("Bytes"); method.IsValid() && method.Type().NumIn() == 0 {
		all = append(all, method.Call(nil)...)
	}
	for _, v := range all {
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			for i := range v.Len() {
				v.Index(i).SetUint(0xff)
			}
		}
	}
}

// What a caller does to a token of State, Mappings or an event changes only its own copy.
func TestTokenCopied(t *testing.T) {
	for name, use := range map[string]func(*testing.T, *forward.Mapping) error{
		"Refresh": func(t *testing.T, m *forward.Mapping) error { return m.Refresh(t.Context()) },
		"Close":   func(_ *testing.T, m *forward.Mapping) error { return m.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var seen []backends.Mapping
			mapped := make(chan struct{})
			gw, f, m, nonce := pcpMapping(t, forward.Config{OnEvent: func(e forward.Event) {
				if e.Kind == forward.EventMapped {
					seen = e.Grants
					close(mapped)
				}
			}})
			<-mapped
			entries, err := f.Mappings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				seen = append(seen, e.Mapping)
			}
			for _, state := range append(m.Grants(), seen...) {
				spoilToken(state)
			}
			if err := use(t, m); err != nil {
				t.Errorf("%s after the caller changed its copy of the token: %v", name, err)
			}
			for _, r := range gw.Requests() {
				if (r.Op == "map" || r.Op == "unmap") && r.Protocol == backends.TCP && !bytes.Contains(r.Raw, nonce) {
					t.Errorf("the request %q does not carry the mapping's nonce", r.Name())
				}
			}
		})
	}
}

// prints returns what shows a value: the verbs of fmt, JSON, and both handlers of slog.
func prints(t *testing.T, v any) map[string]string {
	t.Helper()
	out := map[string]string{"fmt.Println": fmt.Sprintln(v)}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b"} {
		out[format] = fmt.Sprintf(format, v)
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out["JSON"] = string(encoded)
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("test", "value", v)
		out[name] = b.String()
	}
	return out
}

// spellings are the ways in which bytes are printed.
func spellings(secret []byte) []string {
	out := []string{
		string(secret), strings.Trim(strconv.Quote(string(secret)), `"`),
		base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
		strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret), "[]byte{"), "}"),
	}
	for _, format := range []string{"%x", "%X", "% x", "% X", "%v", "%d", "%o", "%b"} {
		out = append(out, strings.Trim(fmt.Sprintf(format, secret), "[]"))
	}
	return out
}

// A nonce is a secret: it is all that a program needs to take the mapping over. Nothing
// prints it.
func TestTokenNotPrinted(t *testing.T) {
	var event forward.Event
	mapped := make(chan struct{})
	_, f, m, nonce := pcpMapping(t, forward.Config{OnEvent: func(e forward.Event) {
		if e.Kind == forward.EventMapped {
			event = e
			close(mapped)
		}
	}})
	<-mapped
	entries, err := f.Mappings(t.Context())
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	state := m.Grants()
	for name, v := range map[string]any{
		"State()": state, "State()[0]": state[0], "&State()[0]": &state[0],
		"Token":      reflect.ValueOf(state[0]).FieldByName("Token").Interface(),
		"Mappings()": entries, "Event.State": event.Grants, "Mapping": m,
	} {
		var leaks []string
		for how, text := range prints(t, v) {
			if slices.ContainsFunc(spellings(nonce), func(spelling string) bool { return strings.Contains(text, spelling) }) {
				leaks = append(leaks, how)
			}
		}
		if slices.Sort(leaks); len(leaks) > 0 {
			t.Errorf("%s prints the nonce by %q; want it hidden", name, leaks)
		}
	}
}
