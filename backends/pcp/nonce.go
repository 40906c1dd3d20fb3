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

// DeriveNonce returns the nonce of a mapping as a function of a secret key, so
// that another process with the key can renew and delete the mapping. Nonces of
// different servers differ, as RFC 6887 section 11.2 wants it.
func DeriveNonce(key []byte, gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) Nonce {
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "pcp nonce %v %d %v", gateway, p, internal)
	return Nonce(mac.Sum(nil)[:len(Nonce{})])
}
