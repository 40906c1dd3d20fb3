package pcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
)

// OptionCode says what an option is. A server refuses requests with an option
// below 128 that it does not know, and ignores other options (RFC 6887,
// section 7.3).
type OptionCode uint8

// The options in [Options].
const (
	OptThirdParty    OptionCode = 1   // RFC 6887, section 13.1
	OptPreferFailure OptionCode = 2   // RFC 6887, section 13.2
	OptFilter        OptionCode = 3   // RFC 6887, section 13.3
	OptDescription   OptionCode = 128 // RFC 7220
)

// String names the option.
func (c OptionCode) String() string {
	switch c {
	case OptThirdParty:
		return "third party"
	case OptPreferFailure:
		return "prefer failure"
	case OptFilter:
		return "filter"
	case OptDescription:
		return "description"
	}
	return fmt.Sprintf("option %d", uint8(c))
}

// maxDescription is the greatest size of a description (RFC 7220).
const maxDescription = 1016

// Options are the options of a request or a response. The zero value has none.
type Options struct {
	// ThirdParty is the host to map for, in the place of the client.
	ThirdParty netip.Addr
	// PreferFailure refuses another external port or address than the wish.
	// MAP only; to be false where the lifetime or the external port is 0.
	PreferFailure bool
	// Filters admit their peers to the mapping, in addition to those that
	// earlier requests admitted. MAP only; to be empty where the lifetime is 0.
	Filters []Filter
	// Description is what the server shows for the mapping: UTF-8 of at most
	// 1016 bytes, without NUL. One that breaks this is ignored when parsed.
	Description string
	// ClearDescription is a description without text, which takes away the one
	// that the server had. To be false where Description is set.
	ClearDescription bool
}

// append appends options that check let pass.
func (o *Options) append(b []byte) []byte {
	if o.ThirdParty.IsValid() {
		b = appendAddr(appendOption(b, OptThirdParty, 16), o.ThirdParty)
	}
	if o.PreferFailure {
		b = appendOption(b, OptPreferFailure, 0)
	}
	for _, f := range o.Filters {
		b = f.append(b)
	}
	if n := len(o.Description); n != 0 || o.ClearDescription {
		b = append(appendOption(b, OptDescription, n), o.Description...)
		b = append(b, "\x00\x00\x00"[:padding(n)]...)
	}
	return b
}

// check refuses, with ErrInvalid, options that cannot be appended to a message
// of so many bytes.
func (o *Options) check(size int, op Opcode) error {
	reason := ""
	switch {
	case op != OpMap && (o.PreferFailure || len(o.Filters) != 0):
		reason = fmt.Sprintf("prefer failure or filter in %v", op)
	case len(o.Description) > maxDescription || !validDescription(o.Description):
		reason = "a description that is too long or not text"
	case o.Description != "" && o.ClearDescription:
		reason = "a description to clear and to set"
	case size+o.size() > MaxMessage:
		reason = fmt.Sprintf("a message of %d bytes", size+o.size())
	}
	for _, f := range o.Filters {
		if reason == "" && !f.valid() {
			reason = fmt.Sprintf("no filter of %v", f.Prefix)
		}
	}
	if reason != "" {
		return fmt.Errorf("pcp: %w: %s", backends.ErrInvalid, reason)
	}
	return nil
}

// size is the number of bytes that append appends.
func (o *Options) size() int {
	n := filterSize * len(o.Filters)
	if o.ThirdParty.IsValid() {
		n += optionHeaderSize + 16
	}
	if o.PreferFailure {
		n += optionHeaderSize
	}
	if d := len(o.Description); d != 0 || o.ClearDescription {
		n += optionHeaderSize + d + padding(d)
	}
	return n
}

// checkAppend refuses, with ErrInvalid, a request that has a fault, no client
// or impossible options.
func checkAppend(client netip.Addr, o *Options, size int, op Opcode, invalid *RequestError) error {
	switch {
	case !client.IsValid():
		return fmt.Errorf("pcp: %w: no client address", backends.ErrInvalid)
	case invalid != nil:
		return fmt.Errorf("pcp: %w: %s", backends.ErrInvalid, invalid.Reason)
	}
	return o.check(size, op)
}

// validDescription reports whether s is what a description may be.
func validDescription(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// optionHeaderSize is the size of an option without its data.
const optionHeaderSize = 4

// padding is what an option's data of n bytes lacks to be a multiple of four.
func padding(n int) int { return -n & 3 }

// appendOption appends the header of an option whose data has n bytes.
func appendOption(b []byte, code OptionCode, n int) []byte {
	return binary.BigEndian.AppendUint16(append(b, byte(code), 0), uint16(n)) //nolint:gosec // at most maxDescription
}

// nextOption splits the first option off b, and reports whether it was whole.
func nextOption(b []byte) (code OptionCode, data, rest []byte, ok bool) {
	if len(b) < optionHeaderSize {
		return 0, nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	end := optionHeaderSize + n + padding(n)
	if end > len(b) {
		return 0, nil, nil, false
	}
	return OptionCode(b[0]), b[optionHeaderSize : optionHeaderSize+n], b[end:], true
}

// parseRequestOptions reads the options of a request as a server has to.
func parseRequestOptions(b []byte, op Opcode) (Options, error) {
	var o Options
	for len(b) > 0 {
		code, data, rest, ok := nextOption(b)
		if !ok {
			return Options{}, &RequestError{Code: MalformedOption, Reason: "an option goes on past the end"}
		}
		if invalid := o.parseOption(code, data, op); invalid != nil {
			return Options{}, invalid
		}
		b = rest
	}
	return o, nil
}

// parseResponseOptions reads the options of a response: what it cannot read, it skips
// (RFC 6887, section 7.3).
func parseResponseOptions(b []byte, op Opcode) Options {
	var o Options
	for len(b) > 0 {
		code, data, rest, ok := nextOption(b)
		if !ok {
			break
		}
		_ = o.parseOption(code, data, op) // leaves o alone where it fails
		b = rest
	}
	return o
}

// parseOption takes one option in, or returns why a server has to refuse it.
func (o *Options) parseOption(code OptionCode, data []byte, op Opcode) *RequestError {
	duplicate, size := false, 0
	switch {
	case code == OptThirdParty && (op == OpMap || op == OpPeer):
		duplicate, size = o.ThirdParty.IsValid(), 16
	case code == OptPreferFailure && op == OpMap:
		duplicate = o.PreferFailure
	case code == OptFilter && op == OpMap:
		size = filterSize - optionHeaderSize
	case code == OptDescription && (op == OpMap || op == OpPeer):
		duplicate, size = o.Description != "" || o.ClearDescription, min(len(data), maxDescription)
	case code < 128:
		return &RequestError{Code: UnsupportedOption, Reason: code.String()}
	default:
		return nil
	}
	if duplicate {
		return &RequestError{Code: MalformedOption, Reason: fmt.Sprintf("%v twice", code)}
	}
	if len(data) != size {
		return &RequestError{Code: MalformedOption, Reason: fmt.Sprintf("%v of %d bytes", code, len(data))}
	}
	switch code {
	case OptThirdParty:
		o.ThirdParty = parseAddr(data)
	case OptPreferFailure:
		o.PreferFailure = true
	case OptFilter:
		f, ok := parseFilter(data)
		if !ok {
			return &RequestError{Code: MalformedOption, Reason: fmt.Sprintf("filter of prefix length %d", data[1])}
		}
		o.Filters = append(o.Filters, f)
	case OptDescription:
		if s := string(data); validDescription(s) {
			o.Description, o.ClearDescription = s, s == ""
		}
	}
	return nil
}

// filterSize is the size of a filter with its header (RFC 6887, section 13.3).
const filterSize = optionHeaderSize + 20

// Filter admits peers to a mapping (RFC 6887, section 13.3).
type Filter struct {
	// Prefix is where the peers are, IPv4 or IPv6. The zero Prefix takes all
	// earlier filters away, so that anyone is admitted. There is no ::/0.
	Prefix netip.Prefix
	// Port is the peers' port; 0 is any.
	Port uint16
}

// bits is the prefix length on the wire, where an IPv4 address begins after
// 96 bits. 0 is that of the zero Prefix.
func (f Filter) bits() int {
	if f.Prefix.Addr().Is4() {
		return 96 + f.Prefix.Bits()
	}
	return max(f.Prefix.Bits(), 0)
}

// valid reports whether the filter has a form on the wire.
func (f Filter) valid() bool {
	if f.Prefix == (netip.Prefix{}) {
		return true
	}
	return f.Prefix.IsValid() && validBits(f.Prefix.Addr(), f.bits())
}

// validBits reports whether n is a prefix length on the wire for the address.
func validBits(addr netip.Addr, n int) bool {
	minimum := 1
	if addr.Unmap().Is4() {
		minimum = 96
	}
	return n >= minimum && n <= 128
}

// append appends a valid filter.
func (f Filter) append(b []byte) []byte {
	b = append(appendOption(b, OptFilter, filterSize-optionHeaderSize), 0, byte(f.bits()))
	b = binary.BigEndian.AppendUint16(b, f.Port)
	return appendAddr(b, f.Prefix.Addr())
}

// parseFilter reads a filter's data, and reports whether its prefix is one.
func parseFilter(data []byte) (Filter, bool) {
	f := Filter{Port: binary.BigEndian.Uint16(data[2:])}
	addr, bits := parseAddr(data[4:]), int(data[1])
	if bits == 0 {
		return f, true
	}
	if !validBits(addr, bits) {
		return Filter{}, false
	}
	if addr.Is4() {
		bits -= 96
	}
	f.Prefix = netip.PrefixFrom(addr, bits)
	return f, true
}
