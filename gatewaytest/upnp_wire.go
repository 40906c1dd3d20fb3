package gatewaytest

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// httpResponse is an answer before the quirks of the server.
type httpResponse struct {
	status int
	body   []byte
}

// encode writes the answer as the server does.
func encode(w quirks.Wire, a httpResponse, version string) []byte {
	chunked := w.Chunked && version != "HTTP/1.0"
	said, reason := "HTTP/1.1", " "+http.StatusText(a.status)
	if w.HTTP10 {
		said = "HTTP/1.0"
	}
	if w.NoReason {
		reason = ""
	}
	var b bytes.Buffer
	eol, sep := lineEnds(w.LFOnly, w.NoSpace)
	line := func(name, value string) { b.WriteString(name + sep + value + eol) }
	fmt.Fprintf(&b, "%s %d%s%s", said, a.status, reason, eol)
	line("CONTENT-TYPE", `text/xml; charset="utf-8"`)
	line("SERVER", serverName)
	switch {
	case chunked:
		line("TRANSFER-ENCODING", "chunked")
	case !w.NoLength:
		line("CONTENT-LENGTH", strconv.Itoa(max(0, len(a.body)+w.LengthOff)))
	}
	if !w.LeaveOpen {
		line("CONNECTION", "close")
	}
	b.WriteString(eol)
	if !chunked {
		b.Write(a.body)
		return b.Bytes()
	}
	for rest := a.body; len(rest) > 0; {
		n := min(len(rest), 100)
		fmt.Fprintf(&b, "%x%s%s%s", n, eol, rest[:n], eol)
		rest = rest[n:]
	}
	b.WriteString("0" + eol + eol)
	return b.Bytes()
}

// serverName is what the gateway says of itself (UPnP Device Architecture 1.1,
// section 1.2.2).
const serverName = "goforward/1 UPnP/1.1 gatewaytest/1"

// lineEnds are how headers are written.
func lineEnds(lfOnly, noSpace bool) (eol, sep string) {
	eol, sep = "\r\n", ": "
	if lfOnly {
		eol = "\n"
	}
	if noSpace {
		sep = ":"
	}
	return eol, sep
}
