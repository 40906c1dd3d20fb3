package reflector

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/netbind"
)

// MinToken is the minimum length of Config.Token.
const MinToken = 16

const (
	maxBody   = 4 << 10
	maxHeader = 4 << 10 // net/http adds 4 KiB
)

// Config is the configuration of a Handler. The zero Config is valid: it serves public addresses
// that connect directly.
type Config struct {
	// DialFrom are addresses of this host from which the reflector connects, at most one of each
	// family. For a family without an address, it prefers another public address of the interface
	// than the one to which the request went: a gateway that filters by address may admit that one.
	DialFrom []netip.Addr
	// TrustProxy are the reverse proxies whose X-Forwarded-For is believed. The header of any other
	// host is ignored.
	TrustProxy []netip.Prefix
	// Allow are addresses to which the reflector connects although they are not public, or belong to
	// this host: those of a LAN or a VPN. NAT64, 6to4 and Teredo are never possible.
	Allow []netip.Prefix
	// Deny are addresses to which the reflector never connects. It takes precedence over Allow.
	Deny []netip.Prefix
	// Token is the secret of the operator, of at least MinToken characters. Requests that have it
	// get complete results, at once. The limits of their prefix do not apply to them, and no port is
	// prohibited. If it is empty, no request can be the operator's.
	Token string
	// Log receives the counts of Stats each hour, and each request at the level debug, without its
	// ports and with the first 24 or 48 bits of its address. Nil means no log.
	Log *slog.Logger
}

// Stats counts what a Handler has done.
type Stats struct {
	// Requests is the number of requests of any kind.
	Requests uint64
	// Refused is the number of requests that were invalid, or about addresses or ports that are
	// not served.
	Refused uint64
	// Limited is the number of requests that were refused because the host had sent too many.
	Limited uint64
	// Busy is the number of requests that were refused because all hosts together had sent too many.
	Busy uint64
	// Probes is the number of ports to which the reflector was asked to connect, in requests that
	// were not refused.
	Probes uint64
	// Echoed is the number of probes after which the right nonce came back.
	Echoed uint64
}

// Handler is a reflector, made by New. Its methods may be called by several goroutines at once.
type Handler struct {
	config Config
	token  [sha256.Size]byte
	log    *slog.Logger
	limits *limits

	requests, refused, limited, busy, probes, echoed atomic.Uint64

	// The rest is replaced by tests.

	dial    func(c dialback.Call, ctx context.Context, announce func(from netip.AddrPort)) (dialback.Outcome, time.Duration, error)
	isLocal func(netip.Addr) bool
	second  func(netip.Addr) netip.Addr
	// window is the time between the announcement of a probe and its result, if that is silent.
	window time.Duration
	// transfer is how long the header, the body, or a line of the reply may take.
	transfer time.Duration
}

// New returns a Handler. The error wraps backends.ErrInvalid if the configuration is not valid.
func New(config Config) (*Handler, error) {
	h := &Handler{
		config: config, token: sha256.Sum256([]byte(config.Token)), log: config.Log,
		dial: dialback.Call.Do, isLocal: netbind.HasAddr, second: secondAddr, window: 5 * time.Second, transfer: 5 * time.Second,
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.limits = newLimits(h.window + time.Second)
	h.config.DialFrom = slices.Clone(config.DialFrom)
	for i, addr := range h.config.DialFrom {
		addr = addr.Unmap()
		h.config.DialFrom[i] = addr
		switch {
		case !addr.IsValid() || addr.Zone() != "" || !h.isLocal(addr):
			return nil, fmt.Errorf("%w: cannot connect from %v, which is not an address of this host", backends.ErrInvalid, addr)
		case slices.ContainsFunc(h.config.DialFrom[:i], func(a netip.Addr) bool { return a.Is4() == addr.Is4() }):
			return nil, fmt.Errorf("%w: cannot connect from %v: there is another address of this family", backends.ErrInvalid, addr)
		}
	}
	for _, list := range []*[]netip.Prefix{&h.config.TrustProxy, &h.config.Allow, &h.config.Deny} {
		*list = slices.Clone(*list)
		for i, p := range *list {
			if !p.IsValid() || p.Addr().Is4In6() {
				return nil, fmt.Errorf("%w: %v is not a prefix of IPv4 or IPv6 addresses", backends.ErrInvalid, p)
			}
			(*list)[i] = p.Masked()
		}
	}
	for _, p := range h.config.TrustProxy {
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%w: %v as a trusted proxy would let every host choose the address to which the reflector connects", backends.ErrInvalid, p)
		}
	}
	if n := len(config.Token); n > 0 && n < MinToken {
		return nil, fmt.Errorf("%w: the token has %d characters, and must have at least %d", backends.ErrInvalid, n, MinToken)
	}
	if strings.ContainsFunc(config.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("%w: the token has spaces or characters other than ASCII", backends.ErrInvalid)
	}
	return h, nil
}

// Stats returns the counts since New.
func (h *Handler) Stats() Stats {
	return Stats{
		Requests: h.requests.Load(), Refused: h.refused.Load(), Limited: h.limited.Load(), Busy: h.busy.Load(),
		Probes: h.probes.Load(), Echoed: h.echoed.Load(),
	}
}

// refusal is a reply other than 200.
type refusal struct {
	status int
	text   string
	retry  time.Duration // for Retry-After; 0 means that there is no such header
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, text string) error { return &refusal{status: status, text: text} }

// ServeHTTP implements http.Handler. It closes each connection after one request. The server
// must limit the time for headers and the number of connections; Serve does.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.requests.Add(1)
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(h.transfer)) // for the body; a server without it has other limits
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Connection", "close") // the deadlines do not fit another request
	w.Header().Set("X-Content-Type-Options", "nosniff")
	var no *refusal
	if errors.As(h.serve(w, control, r), &no) {
		h.setWriteDeadline(control)
		h.writeRefusal(w, no)
	}
}

// setWriteDeadline limits the time for the next part of the reply, if the server can do that.
func (h *Handler) setWriteDeadline(control *http.ResponseController) {
	_ = control.SetWriteDeadline(time.Now().Add(h.transfer))
}

// serve serves a request. If it returns an error, it has written nothing.
func (h *Handler) serve(w http.ResponseWriter, control *http.ResponseController, r *http.Request) error {
	addr, proxied, err := h.requester(r)
	if err != nil {
		return err
	}
	isOperator, tokenErr := h.authorize(r)
	if !isOperator {
		if err := h.limits.visit(clientPrefix(addr)); err != nil {
			return err
		}
	}
	if tokenErr != nil {
		return tokenErr
	}
	switch {
	case r.URL.Path == dialback.AddressPath && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		h.setWriteDeadline(control)
		writeJSON(w, http.StatusOK, dialback.Seen{Address: addr.WithZone("")})
		return nil
	case r.URL.Path == dialback.AddressPath:
		w.Header().Set("Allow", "GET, HEAD")
		return refuse(http.StatusMethodNotAllowed, "only GET is possible here")
	case r.URL.Path != dialback.ProbePath:
		return refuse(http.StatusNotFound, "there are only "+dialback.ProbePath+" and "+dialback.AddressPath)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", "POST")
		return refuse(http.StatusMethodNotAllowed, "only POST is possible here")
	}
	if err := checkOrigin(r); err != nil {
		return err
	}
	probes, err := readProbes(w, r, isOperator)
	if err != nil {
		return err
	}
	if err := h.check(addr, proxied); err != nil {
		return err
	}
	release, err := h.limits.admit(clientPrefix(addr), len(probes), isOperator)
	if err != nil {
		return err
	}
	defer release()
	if err := h.checkLocal(addr, proxied); err != nil {
		return err
	}
	h.probes.Add(uint64(len(probes)))
	h.log.Debug("probes", "from", logPrefix(addr), "number", len(probes), "operator", isOperator)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Accel-Buffering", "no") // nginx passes on each line at once
	w.WriteHeader(http.StatusOK)
	s := &stream{h: h, w: w, control: control, addr: addr, source: h.source(r, addr), isOperator: isOperator, probes: probes}
	s.run(r.Context())
	return nil
}

// authorize reports whether a request has the operator's token. A wrong token is an error: its
// sender expects complete results.
func (h *Handler) authorize(r *http.Request) (bool, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return false, nil
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	isEqual := subtle.ConstantTimeCompare(sum[:], h.token[:]) == 1
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || !isEqual || h.config.Token == "" {
		return false, refuse(http.StatusUnauthorized, "wrong token")
	}
	return true, nil
}

// checkOrigin refuses what a browser sends for a web page. A page could otherwise make its
// visitors ask for connections to their own addresses. Browsers send JSON to another site only
// after a request that this server does not answer, and name the origin of the page.
func checkOrigin(r *http.Request) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "the Content-Type must be application/json")
	}
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		return refuse(http.StatusForbidden, "requests of web pages are not served")
	}
	return nil
}

// readProbes reads and checks the body of a request.
func readProbes(w http.ResponseWriter, r *http.Request, isOperator bool) ([]dialback.Probe, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body has more than 4096 bytes")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, "the body did not arrive in time")
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the body did not arrive")
	}
	return parseProbes(body, isOperator)
}

// parseProbes parses the body of a request.
func parseProbes(body []byte, isOperator bool) ([]dialback.Probe, error) {
	var request dialback.Request
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, refuse(http.StatusBadRequest, "the body is not a valid request: "+bounded(err.Error()))
	}
	if request.Version != dialback.Version {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("version %d is not possible, only %d", request.Version, dialback.Version))
	}
	if n := len(request.Probes); n < 1 || n > dialback.MaxProbes {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("%d probes: a request has 1 to %d", n, dialback.MaxProbes))
	}
	for _, p := range request.Probes {
		if err := checkProbe(p, isOperator); err != nil {
			return nil, err
		}
	}
	return request.Probes, nil
}

func checkProbe(p dialback.Probe, isOperator bool) error {
	isUDP := p.Protocol == backends.UDP
	text := ""
	switch {
	case p.Protocol != backends.TCP && !isUDP:
		text = `the protocol must be "tcp" or "udp"`
	case p.Port == 0:
		text = "a probe needs a port"
	case p.Nonce != "" && !dialback.IsNonce(p.Nonce), p.Want != "" && !dialback.IsNonce(p.Want):
		text = "nonce and want must be 128 bits in base64url, without padding"
	case p.Nonce == "" && p.Want != "", p.Nonce != "" && p.Nonce == p.Want:
		text = "want needs a nonce, and must be another one: a service that repeats everything is no proof"
	case isUDP && p.Nonce == "":
		text = "a UDP port needs a nonce"
	case isUDP && p.Want == "" && !isOperator: // the request must have more bytes than the datagrams
		text = "a UDP port needs want"
	case !isOperator && slices.Contains(prohibited, p.Port):
		return refuse(http.StatusForbidden, fmt.Sprintf("port %d is prohibited on this reflector without the token of the operator", p.Port))
	default:
		return nil
	}
	return refuse(http.StatusBadRequest, text)
}

// bounded returns the beginning of a text.
func bounded(s string) string { return s[:min(len(s), 200)] }

func (h *Handler) writeRefusal(w http.ResponseWriter, no *refusal) {
	switch no.status {
	case http.StatusTooManyRequests:
		h.limited.Add(1)
	case http.StatusServiceUnavailable:
		h.busy.Add(1)
	case http.StatusUnauthorized:
		h.refused.Add(1)
		w.Header().Set("WWW-Authenticate", "Bearer")
	default:
		h.refused.Add(1)
	}
	if no.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((no.retry+time.Second-1)/time.Second)))
	}
	writeJSON(w, no.status, dialback.Refusal{Error: no.text})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(v)) // an error means that the client is gone
}

// encode returns a line with JSON. The messages have no values that JSON cannot express.
func encode(v any) []byte {
	var b bytes.Buffer
	_ = json.NewEncoder(&b).Encode(v)
	return b.Bytes()
}
