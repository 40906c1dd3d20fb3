package upnp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// The limits for everything except the body.
const (
	maxHeader = 16 << 10 // all header lines, including those of interim responses
	maxEndTag = 64
)

// response is an HTTP response.
type response struct {
	status    int
	body      []byte
	truncated bool // the header or the body is incomplete
}

// succeeded reports whether the status is a success and the body is complete.
func (r response) succeeded() bool { return r.status/100 == 2 && !r.truncated }

// responseReader reads an HTTP response from a connection that is used once. It
// accepts the errors of real devices: lines that end in LF alone, a missing
// reason phrase, headers that are folded or have no space, a missing blank line
// before the body, a missing or wrong length, and a connection that stays open
// after the body.
type responseReader struct {
	r     *bufio.Reader
	limit int    // maximum size of the body
	root  string // the element that ends the document
	// onOverrun is called if the body has its announced length but the document
	// has not ended. It bounds the wait for the rest.
	onOverrun func()

	headerBytes     int  // number of header bytes read
	headerTruncated bool // the connection ended within the header
}

// read reads the response. Its error wraps backends.ErrMalformed if the data is
// not an HTTP response. Otherwise it is the error of the connection.
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
		case status/100 == 1: // interim responses, for example 100 Continue
			continue
		case status == 204 || status == 304:
			return response{status: status}, nil
		}
		b := bodyReader{responseReader: r, length: length}
		if chunked && !r.nextByteIs('<') { // some devices announce chunks but send none
			err = b.readChunked()
		} else {
			err = b.readPlain()
		}
		if status/100 != 2 && err != nil {
			b.truncated, err = true, nil // an error status is sufficient without the body
		}
		return response{status: status, body: b.body, truncated: b.truncated || r.headerTruncated}, err
	}
}

// line reads a header line and returns it without its line ending.
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
			continue // blank lines follow interim responses and precede some final ones
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

// readHeader reads the header lines. It returns the length of the body, -1 if
// it is not announced, and whether the body is chunked.
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
	for !r.nextByteIs('<') { // the body may follow without a blank line
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

// nextByteIs reports whether c is the next byte.
func (r *responseReader) nextByteIs(c byte) bool {
	b, err := r.r.Peek(1)
	return err == nil && b[0] == c
}

// unexpectedEOF replaces io.EOF by io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bodyReader reads the body of a response.
type bodyReader struct {
	*responseReader
	length    int64 // the announced length, or -1 if there is none
	body      []byte
	scanned   int  // number of body bytes already searched for the end of the document
	overrun   bool // the body exceeds its announced length
	truncated bool // the connection ended before the body did
}

// readPlain reads until the document ends, until the announced length is
// reached and no document has started, or until the connection ends.
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

// chunkOverhead is the maximum number of framing bytes for each byte in a
// chunk, in addition to maxHeader.
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
			return nil // the trailer is not read
		}
		for end := len(b.body) + n; len(b.body) < end && !b.complete(); {
			if err := b.readSome(end - len(b.body)); err != nil {
				return b.endError(err, true)
			}
		}
	}
	return nil
}

// endError returns the error for a body that ended with err. incomplete means
// that the length or the chunks announced more bytes. The end of the connection
// is not an error, because the document shows whether something is missing.
func (b *bodyReader) endError(err error, incomplete bool) error {
	b.truncated = incomplete && !b.overrun
	if b.overrun || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// readSome reads at most n bytes. It fails if the body exceeds its limit.
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

// chunkSize reads the line that starts a chunk, and the line end of the
// previous chunk.
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

// complete reports whether the end tag of the document's root has been read.
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

// isRoot reports whether a tag has the name of the document's root, with or
// without a prefix.
func (b *bodyReader) isRoot(name []byte) bool {
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	return bytes.EqualFold(bytes.TrimSpace(name), []byte(b.root))
}

// documentStarted reports whether the body contains the name of the root
// element. If it does, and complete returned false, the rest of the document is
// missing.
func (b *bodyReader) documentStarted() bool {
	return bytes.Contains(bytes.ToLower(b.body), []byte(strings.ToLower(b.root)))
}
