package reach

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
)

const (
	// reflectorTimeout is how long one measurement by a reflector takes at most. The reflector
	// itself spends five seconds on a port that does not answer.
	reflectorTimeout = 10 * time.Second
	// maxReply is the number of bytes of a reply that are read, and maxLine the number in one line.
	maxReply, maxLine = 64 << 10, 4 << 10
	// maxQuote is the number of bytes of a helper's text that are quoted.
	maxQuote = 200
	// maxAsking is the number of requests of a prober at once: a reflector admits two.
	maxAsking = 2
	// shortestSilence is the shortest time from an announcement to a result without an arrival. A
	// reflector takes five seconds, or the time to connect with the token.
	shortestSilence = 50 * time.Millisecond
)

// Reflector returns a prober that asks a reflector to connect to the external port: a host of the
// internet that runs goforward reflect or package reach/reflector. The URL begins with http:// or
// https://, and has no user and no query; if it is invalid, each measurement fails with
// backends.ErrInvalid. The prober sends the request from the address of the mapping and from another
// port, and the reflector connects only to the source of the request. An arrival from a public
// address proves LevelInternet. For a program that is not a forward.Listener or PacketConn, TCP is
// recognized in the table of sockets by the source that the reflector has announced; UDP cannot be
// measured.
//
// A failure is Unreachable only if this prober reached the same external endpoint before, and
// otherwise Unknown, like every error of the reflector: its words are quoted, but prove nothing.
//
// Evidence.External is the address that the reflector sees, which counts if the gateway's is not
// public or not known. If the gateway reports another public address, the Verdict is Unknown.
//
// A gateway that admits every address to which any host of its network has sent lets the reflector
// in while it keeps strangers out. A reflector that has a second address connects from that one, and
// is not fooled. With http://, a host that sees the request knows the nonce, and can send it from a
// forged address: prefer https://.
func Reflector(rawURL string, options ...ReflectorOption) Prober {
	r := &reflector{helper: helper{name: withoutPassword(rawURL)}, url: rawURL, asking: make(chan struct{}, maxAsking)}
	for _, o := range options {
		if o != nil {
			o(r)
		}
	}
	return r
}

// withoutPassword returns a URL without the password in it.
func withoutPassword(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return s
}

// ReflectorOption is an option of Reflector.
type ReflectorOption func(*reflector)

// WithToken makes the prober present the token of the reflector's operator. The reflector then
// says why it could not connect, and does not limit the number of measurements in an hour. It is
// sent without encryption if the URL begins with http://.
func WithToken(token string) ReflectorOption { return func(r *reflector) { r.token = token } }

type reflector struct {
	helper
	url, token string
	asking     chan struct{}     // has room for maxAsking requests
	transport  http.RoundTripper // for tests; nil: the network
}

// Probe implements Prober.
func (r *reflector) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	if err := r.check(t, catcher); err != nil {
		return e, err
	}
	endpoint, err := r.endpoint()
	if err != nil {
		return e, err
	}
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	case <-ctx.Done():
		return e, context.Cause(ctx)
	}
	bounded, cancel := context.WithTimeout(ctx, reflectorTimeout)
	defer cancel()
	m := &reflection{target: t}
	probe := dialback.Probe{Protocol: t.Protocol, Port: t.External.Port()}
	expected := Expectation{From: m.isSource, Source: m.isAnnounced}
	if catcher.Owner() != OwnerOther { // another program must not get bytes that it did not ask for
		probe.Nonce, probe.Want = NewNonce(), NewNonce()
		expected.First, expected.Answer = greeting+probe.Nonce, []byte(greeting+probe.Want)
	}
	arrivals, stop := catcher.Expect(expected)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = r.ask(bounded, m, endpoint, probe)
	}()
	defer func() { cancel(); <-ended }()
	begun := time.Now()
	var a Arrival
	select {
	case a = <-arrivals:
	case <-ended:
		select { // both may have happened
		case a = <-arrivals:
		default:
		}
	}
	switch cause := context.Cause(ctx); {
	case a.From.IsValid():
	case cause != nil:
		return e, cause
	default:
		return r.silent(t, e, m, catcher.Owner(), err)
	}
	if !m.address().IsValid() {
		<-ended // a proxy may hold the announcement back until the end of the reply
	}
	if !m.address().IsValid() {
		return e, fmt.Errorf("a connection by %s arrived, but it did not say at which address", r.name)
	}
	return r.arrived(t, e, m.address(), a, begun)
}

// endpoint returns the URL for requests.
func (r *reflector) endpoint() (string, error) {
	u, err := url.Parse(r.url)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: the URL of the reflector: %w", backends.ErrInvalid, err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return "", fmt.Errorf("%w: the URL of the reflector must be http://HOST or https://HOST, not %q", backends.ErrInvalid, r.url)
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return "", fmt.Errorf("%w: the URL of the reflector must have neither a user, nor a query, nor a fragment", backends.ErrInvalid)
	}
	return u.JoinPath(dialback.ProbePath).String(), nil
}

// reflection is what a reflector has said in one measurement.
type reflection struct {
	target Target

	mu        sync.Mutex
	asked     netip.Addr    // of the reflector
	announced dialback.Line // the zero Line until it arrives
	result    dialback.Line // the same
	between   time.Duration // from the one to the other
}

// isSource reports whether a connection from this address may be the reflector's, so that its first
// bytes are examined. All others are left to the program. The announcement may arrive after the
// connection: until then, the reflector may have any address of the internet.
func (m *reflection) isSource(from netip.Addr) bool {
	m.mu.Lock()
	asked, source := m.asked, m.announced.From.Addr()
	m.mu.Unlock()
	if from == asked || from == source {
		return true
	}
	isBehindNAT := source.IsValid() && backends.ScopeOf(source) != backends.ScopePublic
	return (!source.IsValid() || isBehindNAT) && m.target.IsFromInternet(from)
}

// isAnnounced reports whether the reflector has named this source.
func (m *reflection) isAnnounced(from netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return from.IsValid() && from == m.announced.From
}

// address returns the address to which the reflector connects.
func (m *reflection) address() netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.announced.Address
}

// silent returns the evidence if nothing arrived. The error is why the reply ended.
func (r *reflector) silent(t Target, e Evidence, m *reflection, owner Owner, err error) (Evidence, error) {
	m.mu.Lock()
	announced, result, between := m.announced, m.result, m.between
	m.mu.Unlock()
	switch {
	case result.Result == "" && err != nil:
		return e, err
	case result.Result == "" || !announced.Address.IsValid():
		return e, fmt.Errorf("%s did not complete its reply", r.name)
	case between < shortestSilence: // a connection of another program is not recognized without the announcement
		return e, fmt.Errorf("%s or a proxy in front of it announced the source of its connection only at the end of its reply", r.name)
	case owner == OwnerOther && backends.ScopeOf(announced.From.Addr()) != backends.ScopePublic:
		return e, fmt.Errorf("%s is behind a NAT and connects from %v, so its connection to another program cannot be recognized: stop the program on the port during the measurement", r.name, announced.From.Addr())
	case result.Result == dialback.Failed:
		return e, fmt.Errorf("%s says that it cannot connect: %s", r.name, quote(result.Error))
	case result.Result == dialback.Echoed:
		return e, fmt.Errorf("%s says %q, but nothing arrived", r.name, result.Result)
	case result.Result == dialback.Connected:
		return e, fmt.Errorf("%w: %s says %q", errAnswered, r.name, result.Result)
	}
	return r.missed(t, e, announced.Address, quote(string(result.Result)))
}

// ask sends the request and reads the reply.
func (r *reflector) ask(ctx context.Context, m *reflection, endpoint string, probe dialback.Probe) error {
	body, err := json.Marshal(dialback.Request{Version: dialback.Version, Probes: []dialback.Probe{probe}})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if r.token != "" {
		request.Header.Set("Authorization", "Bearer "+r.token)
	}
	transport := r.transport
	if transport == nil {
		network := m.transport()
		defer network.CloseIdleConnections()
		transport = network
	}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s does not answer: %w", r.name, quotingError{unwrapURL(err)})
	case err != nil:
		return fmt.Errorf("%s cannot be asked: %w", r.name, quotingError{unwrapURL(err)})
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return r.refusal(response)
	}
	return r.read(m, response.Body, probe)
}

// transport returns a transport that connects to the reflector as dialHelper does. It uses no proxy of
// the environment, because the reflector would see its address.
func (m *reflection) transport() *http.Transport {
	return &http.Transport{
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxReply,
		DialContext: func(ctx context.Context, _, host string) (net.Conn, error) {
			conn, err := dialHelper(ctx, m.target, "tcp", host)
			if err == nil {
				m.mu.Lock()
				m.asked = endpointOf(conn.RemoteAddr()).Addr()
				m.mu.Unlock()
			}
			return conn, err
		},
	}
}

// unwrapURL removes the method and the URL from an error of package net/http.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// refusal returns what a reflector that does not carry out a request says.
func (r *reflector) refusal(response *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxLine))
	var refusal dialback.Refusal
	if json.Unmarshal(body, &refusal) != nil {
		refusal.Error = string(body)
	}
	text := fmt.Sprintf("%s refuses the request with HTTP status %d", r.name, response.StatusCode)
	if refusal.Error != "" {
		text += ": " + quote(refusal.Error)
	}
	if after := response.Header.Get("Retry-After"); after != "" {
		text += ", and allows the next one in " + quote(after) + " s"
	}
	return errors.New(text)
}

// read reads the lines of a reply until its end.
func (r *reflector) read(m *reflection, body io.Reader, probe dialback.Probe) error {
	lines := bufio.NewScanner(io.LimitReader(body, maxReply))
	lines.Buffer(nil, maxLine)
	var announcedAt time.Time
	for lines.Scan() {
		var line dialback.Line
		switch err := json.Unmarshal(lines.Bytes(), &line); {
		case len(bytes.TrimSpace(lines.Bytes())) == 0:
			continue
		case err != nil:
			return fmt.Errorf("%s replies with something else than a reflector: %s", r.name, quote(lines.Text()))
		case line.Protocol != probe.Protocol || line.Port != probe.Port:
			continue
		}
		line.Address = line.Address.Unmap().WithZone("")
		line.From = netip.AddrPortFrom(line.From.Addr().Unmap().WithZone(""), line.From.Port())
		m.mu.Lock()
		switch { // the first of each counts
		case line.State == dialback.StateDialing && !m.announced.Address.IsValid():
			m.announced, announcedAt = line, time.Now()
		case line.State == dialback.StateDone && m.result.Result == "":
			m.result, m.between = line, time.Since(announcedAt)
		}
		m.mu.Unlock()
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the reply of %s ends early: %w", r.name, quotingError{err})
	}
	return nil
}

// quote quotes the text of a helper.
func quote(s string) string { return strconv.Quote(cut(s)) }

// cut returns the beginning of a text.
func cut(s string) string {
	if len(s) > maxQuote {
		s = strings.ToValidUTF8(s[:maxQuote], "") + "…"
	}
	return s
}

// quotingError is an error of a package that quotes what a helper sent, such as the header of the
// reply or the names in a certificate. Its text is short and printable.
type quotingError struct{ error }

func (e quotingError) Error() string {
	var b strings.Builder
	for _, r := range cut(e.error.Error()) {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

func (e quotingError) Unwrap() error { return e.error }
