package pcp

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// Nonce is the secret of a mapping. Requests for the mapping and their responses
// contain it (RFC 6887, section 11.2). A program that knows the nonce can delete
// the mapping, so every way to print a Nonce hides its bytes. To store a Nonce, use
// the bytes of the array.
type Nonce [12]byte

// hidden is printed instead of a nonce.
const hidden = "(nonce)"

// String hides the nonce.
func (Nonce) String() string { return hidden }

// Format hides the nonce for every verb.
func (Nonce) Format(s fmt.State, _ rune) { io.WriteString(s, hidden) } //nolint:errcheck // fmt's own buffer

// LogValue hides the nonce.
func (Nonce) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the nonce. encoding/json uses it too.
func (Nonce) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// DeriveNonce computes the nonce of a mapping from a secret key. Another process
// with the key can then renew and delete the mapping. Nonces for different servers
// differ, as RFC 6887 section 11.2 requires.
func DeriveNonce(key []byte, gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) Nonce {
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "pcp nonce %v %d %v", gateway, p, internal)
	return Nonce(mac.Sum(nil)[:len(Nonce{})])
}
