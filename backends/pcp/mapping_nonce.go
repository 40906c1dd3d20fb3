package pcp

import (
	"fmt"
	"io"
	"log/slog"
)

// Nonce is the secret of a mapping: requests about the mapping repeat it, and
// its responses do (RFC 6887, section 11.2). Whoever knows it can take the
// mapping away, so all ways to print it hide the bytes. They are in the array,
// for those who store it.
type Nonce [12]byte

// hidden is printed in the place of a nonce.
const hidden = "(nonce)"

// String hides the nonce.
func (Nonce) String() string { return hidden }

// Format hides the nonce, whatever the verb.
func (Nonce) Format(s fmt.State, _ rune) { io.WriteString(s, hidden) } //nolint:errcheck // fmt's own buffer

// LogValue hides the nonce.
func (Nonce) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the nonce, from JSON too.
func (Nonce) MarshalText() ([]byte, error) { return []byte(hidden), nil }
