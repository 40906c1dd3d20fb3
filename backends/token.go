package backends

import (
	"fmt"
	"io"
	"log/slog"
	"unique"
)

// Token has the secret data with which a backend renews and deletes a mapping, for
// example the nonce of PCP. It is opaque to callers, so fmt, encoding/json and
// log/slog do not print its bytes. To store a mapping, store [Token.Bytes] next to
// it. The zero Token has no bytes. The operator == compares the bytes.
type Token struct {
	// If a Token is in an unexported field, fmt calls none of its methods and
	// prints the fields. This field is a pointer, so fmt prints an address.
	handle unique.Handle[string]
}

// NewToken returns a Token with a copy of the bytes. If b is empty, it returns the
// zero Token.
func NewToken(b []byte) Token {
	if len(b) == 0 {
		return Token{}
	}
	return Token{unique.Make(string(b))}
}

// Bytes returns a copy of the bytes, or nil for the zero Token.
func (t Token) Bytes() []byte {
	if t.IsZero() {
		return nil
	}
	return []byte(t.handle.Value())
}

// IsZero reports whether the Token has no bytes.
func (t Token) IsZero() bool { return t == Token{} }

// String hides the bytes.
func (t Token) String() string {
	if t.IsZero() {
		return none
	}
	return hidden
}

// The texts that are printed for a Token.
const (
	hidden = "(token)"
	none   = "(no token)"
)

// Format hides the bytes for every verb.
func (t Token) Format(s fmt.State, _ rune) { io.WriteString(s, t.String()) } //nolint:errcheck // fmt's own buffer

// LogValue hides the bytes.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText hides the bytes. encoding/json uses it too.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText accepts the texts that MarshalText returns, and sets the zero
// Token, because these texts have no bytes. For any other text, UnmarshalText fails
// with ErrInvalid.
func (t *Token) UnmarshalText(text []byte) error {
	if s := string(text); s != hidden && s != none {
		return fmt.Errorf("%w: the text of a token is hidden: store its bytes", ErrInvalid)
	}
	*t = Token{}
	return nil
}
