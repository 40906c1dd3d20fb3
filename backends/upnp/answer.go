package upnp

import (
	"bufio"
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
type answer struct {
	status int
	body   []byte
	cut    bool // the body ended before its announced length
}

// ok reports an answer that says it is a success and is there entirely.
func (a answer) ok() bool { return a.status/100 == 2 && !a.cut }

// answerReader reads an HTTP answer from a connection that is used once, as
// devices send them: lines that end in LF alone, no reason, headers without a
// space or folded, no blank line before the body, a length that is missing or
// wrong, and a connection that stays open although the body has ended.
type answerReader struct {
	r     *bufio.Reader
	limit int    // of the body
	root  string // the element that ends with the document
	// late is called when the announced length is there and the document has not
	// ended, and bounds the wait for the rest.
	late func()

	header int  // bytes read of it
	broken bool // the connection ended in it
}

// read reads the answer. Its error wraps backends.ErrMalformed where what came
// is none, else it is the connection's.
func (r *answerReader) read() (answer, error) {
	for {
		status, err := r.readStatus()
		if err != nil {
			return answer{}, err
		}
		length, chunked, err := r.readHeader()
		if err != nil {
			return answer{}, err
		}
		switch {
		case status/100 == 1: // 100 Continue and its like precede the answer
			continue
		case status == 204 || status == 304:
			return answer{status: status}, nil
		}
		b := bodyReader{answerReader: r, length: length}
		if chunked && !r.nextIs('<') { // some say chunked and are not
			err = b.readChunked()
		} else {
			err = b.readPlain()
		}
		if status/100 != 2 && err != nil {
			b.cut, err = true, nil // the status says enough
		}
		return answer{status: status, body: b.body, cut: b.cut || r.broken}, err
	}
}

// line reads a header line, without its end.
func (r *answerReader) line() (string, error) {
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		line = append(line, part...)
		if r.header += len(part); r.header > maxHeader {
			return "", malformed("HTTP header of more than %d bytes", maxHeader)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return strings.TrimRight(string(line), "\r\n"), err
	}
}

func (r *answerReader) readStatus() (int, error) {
	for {
		line, err := r.line()
		if line == "" && err == nil {
			continue // after an interim answer, and before some
		}
		if line == "" {
			return 0, noEOF(err)
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
func (r *answerReader) readHeader() (length int64, chunked bool, err error) {
	length = -1
	note := func(header string) {
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
	for !r.nextIs('<') { // no blank line before the body
		line, err := r.line()
		if folded := strings.TrimLeft(line, " \t"); folded != line && folded != "" {
			header += " " + folded
			continue
		}
		note(header)
		header = line
		r.broken = errors.Is(err, io.EOF)
		if line == "" || r.broken {
			break
		}
		if err != nil {
			return 0, false, err
		}
	}
	note(header)
	return length, chunked, nil
}

// nextIs reports whether the byte comes next.
func (r *answerReader) nextIs(c byte) bool {
	b, err := r.r.Peek(1)
	return err == nil && b[0] == c
}

// noEOF makes an end before its time an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
