package pcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
)

// OptionCode identifies an option. A server refuses a request with an unknown
// option below 128, and ignores other unknown options (RFC 6887, section 7.3).
type OptionCode uint8

// The codes of the options in [Options].
const (
	OptThirdParty    OptionCode = 1   // RFC 6887, section 13.1
	OptPreferFailure OptionCode = 2   // RFC 6887, section 13.2
	OptFilter        OptionCode = 3   // RFC 6887, section 13.3
	OptDescription   OptionCode = 128 // RFC 7220
)

// String returns the name of the option.
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

// maxDescription is the maximum size of a description in bytes (RFC 7220).
const maxDescription = 1016

// Options are the options of a request or a response. The zero value has no
// options.
type Options struct {
	// ThirdParty is the host for which to map, if it is not the client.
	ThirdParty netip.Addr
	// PreferFailure makes the server refuse the request rather than grant another
	// external port or address. It is for MAP only. It must be false if the
	// lifetime or the external port is 0.
	PreferFailure bool
	// Filters permit remote peers, in addition to the peers that earlier requests
	// permitted. They are for MAP only, and must be empty if the lifetime is 0.
	Filters []Filter
	// Description is the text that the server shows for the mapping: UTF-8 of at
	// most 1016 bytes, without NUL. The parsers ignore a description that breaks
	// this rule. Spaces are appended to it until its size is a multiple of four,
	// because common servers refuse other sizes, and the parsers remove spaces at
	// its end. A description of spaces only has no text.
	Description string
	// ClearDescription sends a description without text, which deletes the
	// description on the server. It must be false if Description is set.
	ClearDescription bool
}

// append appends the options, which must have passed check.
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
		b = append(appendOption(b, OptDescription, n+padding(n)), o.Description...)
		b = append(b, "   "[:padding(n)]...)
	}
	return b
}

// check returns an error that wraps ErrInvalid if the options cannot be appended to
// a message of size bytes with the opcode.
func (o *Options) check(size int, op Opcode) error {
	reason := ""
	switch {
	case op != OpMap && (o.PreferFailure || len(o.Filters) != 0):
		reason = fmt.Sprintf("prefer failure or filter option in %v", op)
	case len(o.Description) > maxDescription || !validDescription(o.Description):
		reason = "description too long or not valid text"
	case o.Description != "" && o.ClearDescription:
		reason = "description set and cleared"
	case size+o.size() > MaxMessage:
		reason = fmt.Sprintf("a message of %d bytes", size+o.size())
	}
	for _, f := range o.Filters {
		if reason == "" && !f.valid() {
			reason = fmt.Sprintf("invalid filter prefix %v", f.Prefix)
		}
	}
	if reason != "" {
		return fmt.Errorf("pcp: %w: %s", backends.ErrInvalid, reason)
	}
	return nil
}

// size returns the number of bytes that append adds.
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

// checkAppend returns an error that wraps ErrInvalid if a request is invalid, has
// no client address, or has options that cannot be encoded.
func checkAppend(client netip.Addr, o *Options, size int, op Opcode, invalid *RequestError) error {
	switch {
	case !client.IsValid():
		return fmt.Errorf("pcp: %w: no client address", backends.ErrInvalid)
	case invalid != nil:
		return fmt.Errorf("pcp: %w: %s", backends.ErrInvalid, invalid.Reason)
	}
	return o.check(size, op)
}

// validDescription reports whether s is valid text for a description.
func validDescription(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// optionHeaderSize is the size of an option without its data.
const optionHeaderSize = 4

// padding returns the number of bytes that extend n bytes of data to a multiple of
// four.
func padding(n int) int { return -n & 3 }

// appendOption appends the header of an option with n bytes of data.
func appendOption(b []byte, code OptionCode, n int) []byte {
	return binary.BigEndian.AppendUint16(append(b, byte(code), 0), uint16(n)) //nolint:gosec // at most maxDescription
}

// nextOption splits the first option off b. It reports whether the option was
// complete.
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

// parseRequestOptions parses the options of a request, with the checks that the
// standard requires of a server.
func parseRequestOptions(b []byte, op Opcode) (Options, error) {
	var o Options
	for len(b) > 0 {
		code, data, rest, ok := nextOption(b)
		if !ok {
			return Options{}, &RequestError{Code: MalformedOption, Reason: "option extends past the end"}
		}
		if invalid := o.parseOption(code, data, op); invalid != nil {
			return Options{}, invalid
		}
		b = rest
	}
	return o, nil
}

// parseResponseOptions parses the options of a response. It skips options that are
// malformed (RFC 6887, section 7.3).
func parseResponseOptions(b []byte, op Opcode) Options {
	var o Options
	for len(b) > 0 {
		code, data, rest, ok := nextOption(b)
		if !ok {
			break
		}
		_ = o.parseOption(code, data, op) // does not change o if it fails
		b = rest
	}
	return o
}

// parseOption stores one option in o, or returns why a server has to refuse it.
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
			o.Description = strings.TrimRight(s, " ")
			o.ClearDescription = o.Description == ""
		}
	}
	return nil
}

// filterSize is the size of a filter with its option header (RFC 6887, section
// 13.3).
const filterSize = optionHeaderSize + 20

// Filter permits remote peers to use a mapping (RFC 6887, section 13.3).
type Filter struct {
	// Prefix has the addresses of the peers, IPv4 or IPv6. The zero Prefix deletes
	// all earlier filters, so that any peer is permitted. The prefix ::/0 cannot be
	// encoded.
	Prefix netip.Prefix
	// Port is the port of the peers. Port 0 means any port.
	Port uint16
}

// bits returns the prefix length in the message. An IPv4 address begins after 96
// bits. The zero Prefix has length 0.
func (f Filter) bits() int {
	if f.Prefix.Addr().Is4() {
		return 96 + f.Prefix.Bits()
	}
	return max(f.Prefix.Bits(), 0)
}

// valid reports whether the filter can be encoded.
func (f Filter) valid() bool {
	if f.Prefix == (netip.Prefix{}) {
		return true
	}
	return f.Prefix.IsValid() && validBits(f.Prefix.Addr(), f.bits())
}

// validBits reports whether n is a valid prefix length in a message for the
// address.
func validBits(addr netip.Addr, n int) bool {
	minimum := 1
	if addr.Unmap().Is4() {
		minimum = 96
	}
	return n >= minimum && n <= 128
}

// append appends the filter, which must be valid.
func (f Filter) append(b []byte) []byte {
	b = append(appendOption(b, OptFilter, filterSize-optionHeaderSize), 0, byte(f.bits()))
	b = binary.BigEndian.AppendUint16(b, f.Port)
	return appendAddr(b, f.Prefix.Addr())
}

// parseFilter parses the data of a filter, and reports whether its prefix is valid.
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
