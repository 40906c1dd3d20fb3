package upnp

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// bodyReader is the body of an answer while it is read.
type bodyReader struct {
	*answerReader
	length  int64 // announced, or -1
	body    []byte
	checked int  // how much of body was searched for the document's end
	over    bool // more than the announced length is being read
	cut     bool // the connection ended before the body
}

// readPlain reads until the document ends, or all that was announced is there
// and is no document, or the connection ends.
func (b *bodyReader) readPlain() error {
	for !b.complete() {
		if b.length >= 0 && int64(len(b.body)) >= b.length && !b.over {
			if !b.unfinished() {
				return nil
			}
			b.over = true
			b.late()
		}
		n := b.limit + 1 - len(b.body)
		if b.length >= 0 && !b.over {
			n = int(min(int64(n), b.length-int64(len(b.body))))
		}
		if err := b.readSome(n); err != nil {
			return b.ended(err, b.length >= 0)
		}
	}
	return nil
}

// chunkOverhead is how many bytes around chunks there may be for each byte in
// them, over what all headers may have.
const chunkOverhead = 16

func (b *bodyReader) readChunked() error {
	b.header = 0
	for !b.complete() {
		n, err := b.chunkSize()
		b.header = max(0, b.header-chunkOverhead*n)
		if err != nil {
			return b.ended(err, true)
		}
		if n == 0 {
			return nil // the trailer goes with the connection
		}
		for end := len(b.body) + n; len(b.body) < end && !b.complete(); {
			if err := b.readSome(end - len(b.body)); err != nil {
				return b.ended(err, true)
			}
		}
	}
	return nil
}

// ended judges the error that ended the body. An end of the connection is
// none: the document tells whether something is missing.
func (b *bodyReader) ended(err error, cut bool) error {
	b.cut = cut && !b.over
	if b.over || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// readSome reads up to n bytes of what is there, and fails where the body is
// longer than allowed.
func (b *bodyReader) readSome(n int) error {
	var buf [4096]byte
	got, err := b.r.Read(buf[:min(n, len(buf))])
	b.body = append(b.body, buf[:got]...)
	if len(b.body) > b.limit {
		b.over = false
		return malformed("HTTP body of more than %d bytes", b.limit)
	}
	return err
}

// chunkSize reads the line before a chunk, and what ends the chunk before it.
func (b *bodyReader) chunkSize() (int, error) {
	for {
		line, err := b.line()
		if err != nil {
			return 0, err
		}
		if line == "" {
			continue
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
		if err != nil || int(n) > b.limit {
			return 0, malformed("chunk of size %q", clip(line))
		}
		return int(n), nil
	}
}

// complete reports whether the document's last tag is there.
func (b *bodyReader) complete() bool {
	rest := b.body[max(0, b.checked-maxEndTag):]
	b.checked = len(b.body)
	for {
		end := bytes.IndexByte(rest, '>')
		if end < 0 {
			return false
		}
		tag := rest[max(0, end-maxEndTag):end]
		if start := bytes.LastIndex(tag, []byte("</")); start >= 0 && b.isRoot(tag[start+2:]) {
			return true
		}
		rest = rest[end+1:]
	}
}

// isRoot reports whether a tag's name is the document's, with or without prefix.
func (b *bodyReader) isRoot(name []byte) bool {
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	return bytes.EqualFold(bytes.TrimSpace(name), []byte(b.root))
}

// unfinished reports whether the document began; its end is still to come then.
func (b *bodyReader) unfinished() bool {
	return bytes.Contains(bytes.ToLower(b.body), []byte(strings.ToLower(b.root)))
}
