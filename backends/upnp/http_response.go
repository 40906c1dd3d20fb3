package upnp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// The bounds of what is read besides the body.
const (
	maxHeader = 16 << 10 // all header lines, also of what precedes the answer
	maxEndTag = 64
)

// answer is an HTTP answer.
type response struct {
	status    int
	body      []byte
	truncated bool // the body ended before its announced length
}

// ok reports an answer that says it is a success and is there entirely.
func (r response) succeeded() bool { return r.status/100 == 2 && !r.truncated }

// answerReader reads an HTTP answer from a connection that is used once, as
// devices send them: lines that end in LF alone, no reason, headers without a
// space or folded, no blank line before the body, a length that is missing or
// wrong, and a connection that stays open although the body has ended.
type responseReader struct {
	r     *bufio.Reader
	limit int    // of the body
	root  string // the element that ends with the document
	// late is called when the announced length is there and the document has not
	// ended, and bounds the wait for the rest.
	onOverrun func()

	headerBytes     int  // bytes read of it
	headerTruncated bool // the connection ended in it
}

// read reads the answer. Its error wraps backends.ErrMalformed where what came
// is none, else it is the connection's.
func (r *responseReader) read() (response, error) {
	for {
		status, err := r.readStatus()
		if err != nil {
			return response{}, err
		}
		length, chunked, err := r.readHeader()
		if err != nil {
			return response{}, err
		}
		switch {
		case status/100 == 1: // 100 Continue and its like precede the answer
			continue
		case status == 204 || status == 304:
			return response{status: status}, nil
		}
		b := bodyReader{responseReader: r, length: length}
		if chunked && !r.nextByteIs('<') { // some say chunked and are not
			err = b.readChunked()
		} else {
			err = b.readPlain()
		}
		if status/100 != 2 && err != nil {
			b.truncated, err = true, nil // the status says enough
		}
		return response{status: status, body: b.body, truncated: b.truncated || r.headerTruncated}, err
	}
}

// line reads a header line, without its end.
func (r *responseReader) line() (string, error) {
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		line = append(line, part...)
		if r.headerBytes += len(part); r.headerBytes > maxHeader {
			return "", malformed("HTTP header of more than %d bytes", maxHeader)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return strings.TrimRight(string(line), "\r\n"), err
	}
}

func (r *responseReader) readStatus() (int, error) {
	for {
		line, err := r.line()
		if line == "" && err == nil {
			continue // after an interim answer, and before some
		}
		if line == "" {
			return 0, unexpectedEOF(err)
		}
		version, rest, _ := strings.Cut(line, " ")
		code, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		status, codeErr := strconv.ParseUint(code, 10, 16)
		if !strings.HasPrefix(version, "HTTP/") || codeErr != nil || status < 100 || status > 599 {
			return 0, malformed("HTTP status line %q", clip(line))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		return int(status), nil
	}
}

// readHeader reads header lines for what they say of the body: its length, -1
// where it is not told, and whether it is chunked.
func (r *responseReader) readHeader() (length int64, chunked bool, err error) {
	length = -1
	parse := func(header string) {
		name, value, _ := strings.Cut(header, ":")
		value = strings.TrimSpace(value)
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, "Content-Length"):
			if n, err := strconv.ParseUint(value, 10, 32); err == nil {
				length = int64(n)
			}
		case strings.EqualFold(name, "Transfer-Encoding"):
			chunked = strings.EqualFold(value, "chunked")
		}
	}
	header := ""
	for !r.nextByteIs('<') { // no blank line before the body
		line, err := r.line()
		if folded := strings.TrimLeft(line, " \t"); folded != line && folded != "" {
			header += " " + folded
			continue
		}
		parse(header)
		header = line
		r.headerTruncated = errors.Is(err, io.EOF)
		if line == "" || r.headerTruncated {
			break
		}
		if err != nil {
			return 0, false, err
		}
	}
	parse(header)
	return length, chunked, nil
}

// nextIs reports whether the byte comes next.
func (r *responseReader) nextByteIs(c byte) bool {
	b, err := r.r.Peek(1)
	return err == nil && b[0] == c
}

// noEOF makes an end before its time an error of its own.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bodyReader is the body of an answer while it is read.
type bodyReader struct {
	*responseReader
	length    int64 // announced, or -1
	body      []byte
	scanned   int  // how much of body was searched for the document's end
	overrun   bool // more than the announced length is being read
	truncated bool // the connection ended before the body
}

// readPlain reads until the document ends, or all that was announced is there
// and is no document, or the connection ends.
func (b *bodyReader) readPlain() error {
	for !b.complete() {
		if b.length >= 0 && int64(len(b.body)) >= b.length && !b.overrun {
			if !b.documentStarted() {
				return nil
			}
			b.overrun = true
			b.onOverrun()
		}
		n := b.limit + 1 - len(b.body)
		if b.length >= 0 && !b.overrun {
			n = int(min(int64(n), b.length-int64(len(b.body))))
		}
		if err := b.readSome(n); err != nil {
			return b.endError(err, b.length >= 0)
		}
	}
	return nil
}

// chunkOverhead is how many bytes around chunks there may be for each byte in
// them, over what all headers may have.
const chunkOverhead = 16

func (b *bodyReader) readChunked() error {
	b.headerBytes = 0
	for !b.complete() {
		n, err := b.chunkSize()
		b.headerBytes = max(0, b.headerBytes-chunkOverhead*n)
		if err != nil {
			return b.endError(err, true)
		}
		if n == 0 {
			return nil // the trailer goes with the connection
		}
		for end := len(b.body) + n; len(b.body) < end && !b.complete(); {
			if err := b.readSome(end - len(b.body)); err != nil {
				return b.endError(err, true)
			}
		}
	}
	return nil
}

// ended judges the error that ended the body. An end of the connection is
// none: the document tells whether something is missing.
func (b *bodyReader) endError(err error, incomplete bool) error {
	b.truncated = incomplete && !b.overrun
	if b.overrun || errors.Is(err, io.EOF) {
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
		b.overrun = false
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
	rest := b.body[max(0, b.scanned-maxEndTag):]
	b.scanned = len(b.body)
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
func (b *bodyReader) documentStarted() bool {
	return bytes.Contains(bytes.ToLower(b.body), []byte(strings.ToLower(b.root)))
}
