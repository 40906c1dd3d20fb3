package pcp

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// DeriveNonce returns the nonce of a mapping as a function of a secret key, so
// that another process with the key can renew and delete the mapping. Nonces of
// different servers differ, as RFC 6887 section 11.2 wants it.
func DeriveNonce(key []byte, gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) Nonce {
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "pcp nonce %v %d %v", gateway, p, internal)
	return Nonce(mac.Sum(nil)[:len(Nonce{})])
}
