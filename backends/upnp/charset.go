package upnp

import (
	"bytes"
	"regexp"
	"strconv"
	"unicode/utf8"
)

var charRef = regexp.MustCompile(`&#(x[0-9a-fA-F]{1,8}|[0-9]{1,10});`)

// utf8XML is a document as UTF-8 that XML allows, without the declaration that
// may contradict it. Whatever is declared, what is not valid UTF-8 is taken for
// ISO-8859-1: every byte means something in it, and the names in a document
// that we need are ASCII in all charsets that devices use.
func utf8XML(b []byte) []byte {
	start := bytes.IndexByte(b, '<') // drops byte order mark and leading space
	if start < 0 {
		return nil
	}
	b = b[start:]
	latin1 := !utf8.Valid(b)
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := rune(b[0]), 1
		if !latin1 {
			r, n = utf8.DecodeRune(b)
		}
		b = b[n:]
		switch {
		case r == '<' && !startsMarkup(b):
			out = append(out, "&lt;"...)
		case isXMLChar(r):
			out = utf8.AppendRune(out, r)
		}
	}
	if bytes.HasPrefix(out, []byte("<?xml")) {
		_, out, _ = bytes.Cut(out, []byte("?>"))
	}
	return charRef.ReplaceAllFunc(out, replaceIllegalRef)
}

// startsMarkup reports whether what follows a < makes it one.
func startsMarkup(rest []byte) bool {
	if len(rest) == 0 {
		return true
	}
	c := rest[0]
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf || bytes.IndexByte([]byte("_/!?"), c) >= 0
}

// replaceIllegalRef keeps a reference to a character that XML does not allow
// from ending the document early: other hosts of the network may have put one
// into the table.
func replaceIllegalRef(ref []byte) []byte {
	digits, base := string(ref[2:len(ref)-1]), 10
	if digits[0] == 'x' {
		digits, base = digits[1:], 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n > utf8.MaxRune || !isXMLChar(rune(n)) {
		return []byte("?")
	}
	return ref
}

// isXMLChar reports whether XML 1.0 allows the character.
func isXMLChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= ' ' && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune
}
