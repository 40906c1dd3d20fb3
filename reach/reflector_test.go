package reach

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/natforward/goforward/internal/dialback"
)

// fakeReflector is a transport that replies with lines. It makes the connection arrive between the
// announcement and the result. Everything that it says may be a lie.
type fakeReflector struct {
	status   int
	header   http.Header
	before   []string      // lines before the connection
	after    []string      // lines after it
	heldBack bool          // a proxy holds the lines back until the end
	silence  time.Duration // from the connection to the lines after it
	err      error         // of the request
	arrive   func(dialback.Probe)
}

func (f *fakeReflector) RoundTrip(r *http.Request) (*http.Response, error) {
	var request dialback.Request
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/probe" || len(request.Probes) != 1 || request.Version != 1 {
		return nil, errors.New("an unexpected request")
	}
	if f.err != nil {
		return nil, f.err
	}
	connect := func() {
		if f.arrive != nil {
			f.arrive(request.Probes[0])
		}
		time.Sleep(f.silence) // in a bubble of synctest
	}
	if f.heldBack {
		connect()
		connect = func() {}
	}
	return &http.Response{
		StatusCode: cmp.Or(f.status, http.StatusOK), Header: f.header, Request: r,
		Body: io.NopCloser(io.MultiReader(text(f.before), readFunc(connect), text(f.after))),
	}, nil
}

func text(lines []string) io.Reader {
	return strings.NewReader(strings.Join(append(lines, ""), "\n"))
}

// readFunc is an empty reader that calls a function when it is read: what is before it was then
// processed.
type readFunc func()

func (f readFunc) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// dialing and done are the lines of an honest reflector, with other values.
func dialing(address, from string) string {
	return fmt.Sprintf(`{"state":"dialing","protocol":"tcp","port":8080,"address":%q,"from":%q}`, address, from)
}

func done(result string) string {
	return fmt.Sprintf(`{"state":"done","protocol":"tcp","port":8080,"result":%q}`, result)
}

const (
	reflectorAt   = "8.8.8.8:40122" // the source of its connection
	testExternal  = "45.45.45.1"    // of testTarget
	otherExternal = "45.45.45.9"
)

// TestReflector checks that only arrivals count, not the words of a reflector.
func TestReflector(t *testing.T) {
	private := testTarget
	private.External = netip.MustParseAddrPort("10.1.2.3:8080")
	hidden := testTarget
	hidden.External = netip.AddrPortFrom(netip.Addr{}, 8080)
	for name, tt := range map[string]struct {
		f        fakeReflector
		owner    Owner
		target   *Target
		arrives  string // the source of a connection with the right nonce
		verdict  Verdict
		external string // of the evidence
		text     string // in the detail or the error
	}{
		"arrival":                      {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("echoed")}, silence: 100 * time.Millisecond}, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.1:8080", text: "arrived, from 8.8.8.8:40122"},
		"arrival, but it denies it":    {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("silent")}, silence: 5 * time.Second}, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.1:8080"},
		"arrival, translated port":     {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}}, arrives: "8.8.8.8:9", verdict: Reachable, external: "45.45.45.1:8080"},
		"arrival, reflector in a NAT":  {f: fakeReflector{before: []string{dialing(testExternal, "10.9.9.9:40122")}}, arrives: "8.8.8.8:9", verdict: Reachable, external: "45.45.45.1:8080"},
		"arrival at another address":   {f: fakeReflector{before: []string{dialing(otherExternal, reflectorAt)}}, arrives: reflectorAt, text: "the router reports 45.45.45.1"},
		"arrival, private external":    {f: fakeReflector{before: []string{dialing(otherExternal, reflectorAt)}}, target: &private, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.9:8080", text: "the router reports 10.1.2.3"},
		"arrival, hidden external":     {f: fakeReflector{before: []string{dialing(otherExternal, reflectorAt)}}, target: &hidden, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.9:8080"},
		"arrival at no public address": {f: fakeReflector{before: []string{dialing("100.64.1.2", reflectorAt)}}, target: &hidden, arrives: reflectorAt, text: "at the address 100.64.1.2, which is not public"},
		"arrival, unnamed address":     {f: fakeReflector{before: []string{`{"state":"dialing","protocol":"tcp","port":8080,"from":"8.8.8.8:1"}`}}, arrives: reflectorAt, text: "did not say at which address"},
		"arrival from an unnamed host": {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("echoed")}, silence: 100 * time.Millisecond}, arrives: "9.9.9.9:40122", text: `says "echoed", but nothing arrived`},
		"arrival from the LAN":         {f: fakeReflector{before: []string{dialing(testExternal, "192.168.77.9:1")}, after: []string{done("echoed")}, silence: 100 * time.Millisecond}, arrives: "192.168.77.9:1", text: "not an address of the internet"},
		"arrival from our own address": {f: fakeReflector{before: []string{dialing(otherExternal, otherExternal+":1")}}, target: &private, arrives: otherExternal + ":1", text: "not an address of the internet"},
		"arrival, announced later":     {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, heldBack: true, after: []string{done("silent")}}, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.1:8080"},
		"LAN, announced later":         {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, heldBack: true, after: []string{done("silent")}}, arrives: "192.168.77.9:1", text: "only at the end"},
		"it lies: echoed":              {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("echoed")}, silence: 100 * time.Millisecond}, text: `says "echoed", but nothing arrived`},
		"it lies: silent":              {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("silent")}}, text: "only at the end"},
		"silent":                       {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("silent")}, silence: 5 * time.Second}, text: `says "silent"; it has not reached 45.45.45.1:8080 before`},
		"silent at another address":    {f: fakeReflector{before: []string{dialing(otherExternal, reflectorAt)}, after: []string{done("silent")}, silence: 5 * time.Second}, text: "it sees this host at 45.45.45.9"},
		"refused, with the token":      {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("refused")}, silence: time.Second}, text: `says "refused"; it has not`},
		"connected, with the token":    {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("connected")}, silence: time.Second}, text: errAnswered.Error()},
		"failed, with the token":       {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{`{"state":"done","protocol":"tcp","port":8080,"result":"failed","error":"no route\u001b"}`}, silence: time.Second}, text: `cannot connect: "no route\x1b"`},
		"no answer to the request":     {f: fakeReflector{err: context.DeadlineExceeded}, text: "does not answer"},
		"away":                         {f: fakeReflector{err: errors.New("connection refused")}, text: "cannot be asked: connection refused"},
		"no IPv4 address":              {f: fakeReflector{err: errNoAddress}, text: "no address of the family"},
		"nothing at all":               {f: fakeReflector{}, text: "did not complete its reply"},
		"only an announcement":         {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}}, text: "did not complete its reply"},
		"only a result":                {f: fakeReflector{after: []string{done("echoed")}, silence: 100 * time.Millisecond}, text: "did not complete its reply"},
		"lines for another port":       {f: fakeReflector{before: []string{strings.ReplaceAll(dialing(testExternal, reflectorAt), "8080", "8081")}}, text: "did not complete its reply"},
		"garbage":                      {f: fakeReflector{before: []string{"<html>\x1b[2J"}}, text: `something else than a reflector: "<html>\x1b[2J"`},
		"a huge line":                  {f: fakeReflector{before: []string{strings.Repeat("x", maxReply)}}, text: "ends early"},
		"an address with a zone":       {f: fakeReflector{before: []string{dialing("45.45.45.1", "[fe80::1%25eth0]:1")}}, text: "did not complete"},
		"HTTP 500":                     {f: fakeReflector{status: 500, after: []string{"<b>" + strings.Repeat("x", 1000)}}, text: "HTTP status 500: \"<b>"},
		"HTTP 429":                     {f: fakeReflector{status: 429, header: http.Header{"Retry-After": {"30"}}, after: []string{`{"error":"too many requests"}`}}, text: `HTTP status 429: "too many requests", and allows the next one in "30" s`},
		"a redirect":                   {f: fakeReflector{status: 307, header: http.Header{"Location": {"http://127.0.0.1:1/"}}}, text: "HTTP status 307"},
		"table: the announced source":  {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}}, owner: OwnerOther, arrives: reflectorAt, verdict: Reachable, external: "45.45.45.1:8080"},
		"table: another port":          {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, after: []string{done("silent")}, silence: 5 * time.Second}, owner: OwnerOther, arrives: "8.8.8.8:9", text: `says "silent"`},
		"table: reflector in a NAT":    {f: fakeReflector{before: []string{dialing(testExternal, "10.9.9.9:40122")}, after: []string{done("silent")}, silence: 5 * time.Second}, owner: OwnerOther, arrives: "8.8.8.8:40122", text: "is behind a NAT and connects from 10.9.9.9"},
		"table: announced too late":    {f: fakeReflector{before: []string{dialing(testExternal, reflectorAt)}, heldBack: true, after: []string{done("silent")}}, owner: OwnerOther, arrives: reflectorAt, text: "only at the end"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				target := testTarget
				if tt.target != nil {
					target = *tt.target
				}
				c := &stubCatcher{owner: cmp.Or(tt.owner, OwnerProgram)}
				tt.f.arrive = func(p dialback.Probe) { arrive(t, c, p, tt.arrives) }
				r := Reflector(reflectorURL).(*reflector)
				r.transport = &tt.f
				e, err := r.Probe(t.Context(), target, c)
				text := e.Detail
				if err != nil {
					text = err.Error()
				}
				if e.Verdict != tt.verdict || (err == nil) != (tt.verdict == Reachable) || !strings.Contains(text, tt.text) || !strings.Contains(text, reflectorURL) || len(text) > 1000 {
					t.Errorf("%v: %s", e.Verdict, text)
				}
				if tt.verdict == Reachable && (e.External.String() != tt.external || e.Level != LevelInternet || e.From.String() != tt.arrives || e.At.IsZero()) {
					t.Errorf("%+v", e)
				}
				if !c.IsEmpty() {
					t.Error("something is still expected")
				}
			})
		})
	}
}

// arrive makes a connection from this source arrive, as far as the catcher examines it. An empty
// source means none.
func arrive(t *testing.T, c *stubCatcher, p dialback.Probe, source string) {
	t.Helper()
	if (p.Nonce == "") != (c.owner == OwnerOther) || p.Nonce != "" && (!dialback.IsNonce(p.Nonce) || !dialback.IsNonce(p.Want) || p.Nonce == p.Want) {
		t.Errorf("the probe is %+v", p)
	}
	if source == "" {
		return
	}
	from := netip.MustParseAddrPort(source)
	if c.owner == OwnerOther {
		c.Seen(from)
		return
	}
	answer, matches, _ := c.Match([]byte(dialback.Greeting+p.Nonce), from)
	if matches && string(answer) != dialback.Greeting+p.Want {
		t.Errorf("answer %q, want the nonce %q", answer, p.Want)
	}
}

const reflectorURL = "http://reflector.example:8099"

// TestReflectorReachedBefore checks that a failure counts only after an arrival at the same endpoint,
// and that an error never counts.
func TestReflectorReachedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &stubCatcher{owner: OwnerProgram}
		r := Reflector(reflectorURL).(*reflector)
		other, hidden, changed := testTarget, testTarget, testTarget
		other.External = netip.MustParseAddrPort("45.45.45.1:8081")
		hidden.External = netip.AddrPortFrom(netip.Addr{}, 8080)
		changed.External = netip.MustParseAddrPort("45.45.45.9:8080") // the request came from another address
		for i, tt := range []struct {
			target  Target
			arrives bool
			status  int
			verdict Verdict
		}{
			{testTarget, false, 200, Unknown},
			{testTarget, true, 200, Reachable},
			{testTarget, false, 200, Unreachable},
			{other, false, 200, Unknown},
			{hidden, false, 200, Unreachable},
			{changed, false, 200, Unknown},
			{testTarget, false, 500, Unknown},
		} {
			port := fmt.Sprint(tt.target.External.Port())
			f := &fakeReflector{status: tt.status, silence: 5 * time.Second}
			f.before = []string{strings.Replace(dialing(testExternal, reflectorAt), "8080", port, 1)}
			f.after = []string{strings.Replace(done("silent"), "8080", port, 1)}
			if tt.arrives {
				f.arrive = func(p dialback.Probe) { arrive(t, c, p, reflectorAt) }
			}
			r.transport = f
			e, err := r.Probe(t.Context(), tt.target, c)
			if e.Verdict != tt.verdict || (err == nil) != (tt.verdict != Unknown) {
				t.Errorf("%d: %v, %v, want %v", i, e.Verdict, err, tt.verdict)
			}
			if e.Verdict == Unreachable && (!strings.Contains(e.Detail, reflectorURL) || !strings.Contains(e.Detail, `"silent"`)) {
				t.Errorf("%d: %s", i, e.Detail)
			}
		}
	})
}

// TestReflectorNotAsked checks when nothing is sent to the reflector.
func TestReflectorNotAsked(t *testing.T) {
	t.Parallel()
	asked := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the reflector was asked") }))
	defer asked.Close()
	loopback, hidden, portless := testTarget, testTarget, testTarget
	loopback.Gateway = netip.MustParseAddr("127.0.0.1")
	hidden.Gateway, hidden.External = loopback.Gateway, netip.AddrPortFrom(netip.Addr{}, 8080)
	portless.External = netip.AddrPortFrom(portless.External.Addr(), 0)
	working := &stubCatcher{owner: OwnerProgram}
	for name, tt := range map[string]struct {
		url    string
		target Target
		c      *stubCatcher
	}{
		"a test gateway":            {asked.URL, loopback, working},
		"a test gateway that hides": {asked.URL, hidden, working},
		"no port":                   {asked.URL, portless, working},
		"nothing is observed":       {asked.URL, testTarget, &stubCatcher{owner: OwnerOther, blind: errors.ErrUnsupported}},
		"no URL":                    {"", testTarget, working},
		"no scheme":                 {strings.TrimPrefix(asked.URL, "http://"), testTarget, working},
		"another scheme":            {"ftp" + strings.TrimPrefix(asked.URL, "http"), testTarget, working},
		"a user":                    {strings.Replace(asked.URL, "://", "://me:secret@", 1), testTarget, working},
		"a query":                   {asked.URL + "?x", testTarget, working},
		"control characters":        {asked.URL + "/\x1b", testTarget, working},
	} {
		e, err := Reflector(tt.url, nil).Probe(t.Context(), tt.target, tt.c)
		if err == nil || e.Verdict != Unknown || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", name, e.Verdict, err)
		}
	}
	if name := Reflector("https://me:secret@example.net").Name(); strings.Contains(name, "secret") {
		t.Errorf("the name is %s", name)
	}
}

// TestReflectorRequest checks the request on a real connection: with the token, below the path of the
// URL, without a proxy of the environment, and without following a redirect.
func TestReflectorRequest(t *testing.T) {
	t.Parallel()
	if (&reflection{}).transport().Proxy != nil {
		t.Error("it uses a proxy")
	}
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	_, err := Reflector(server.URL+"/below/", WithToken("a token")).Probe(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram})
	if err == nil || !strings.Contains(err.Error(), "HTTP status 307") {
		t.Errorf("%v", err)
	}
	if got == nil || got.URL.Path != "/below/v1/probe" || got.Header.Get("Authorization") != "Bearer a token" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the request is %+v", got)
	}
}

// TestReflectorErrorText checks that an error of package net/http or crypto/tls is short and printable:
// such errors have parts of the reply, and the names in the certificate.
func TestReflectorErrorText(t *testing.T) {
	t.Parallel()
	hostile := "names \x1b[31m\u202e " + strings.Repeat("x", 10000)
	r := Reflector(reflectorURL).(*reflector)
	r.transport = &fakeReflector{err: errors.New(hostile)}
	_, refused := r.Probe(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+hostile+"\r\n\r\n")
		_ = conn.Close()
	}))
	defer server.Close()
	_, malformed := Reflector(server.URL).Probe(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram})
	for _, err := range []error{refused, malformed} {
		if err == nil || !strings.Contains(err.Error(), "names ") || len(err.Error()) > 2*maxQuote || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%.500q", err)
		}
	}
}

// TestReflectorEnd checks that the end of the context ends a measurement, also while the reflector
// says nothing, and that the time is limited.
func TestReflectorEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, within := range []time.Duration{time.Second, time.Hour} {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			r := Reflector(reflectorURL).(*reflector)
			r.transport = hangingTransport{}
			begun := time.Now()
			e, err := r.Probe(ctx, testTarget, &stubCatcher{owner: OwnerProgram})
			if took := time.Since(begun); e.Verdict != Unknown || err == nil || took != min(within, reflectorTimeout) {
				t.Errorf("%v: %v, %v after %v", within, e.Verdict, err, took)
			}
			cancel()
		}
	})
}

type hangingTransport struct{}

func (hangingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestReflectorAtOnce checks that a prober sends at most two requests at once, as many as a reflector
// admits, however many ports are measured.
func TestReflectorAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Reflector(reflectorURL).(*reflector)
		r.transport = hangingTransport{}
		begun := time.Now()
		var probes sync.WaitGroup
		for range 4 {
			probes.Go(func() { _, _ = r.Probe(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram}) })
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		probes.Go(func() {
			if _, err := r.Probe(ctx, testTarget, &stubCatcher{owner: OwnerProgram}); !errors.Is(err, errProven) {
				t.Errorf("the end of a waiting measurement: %v", err)
			}
		})
		synctest.Wait()
		cancel(errProven)
		probes.Wait()
		if took := time.Since(begun); took != 2*reflectorTimeout { // two after two
			t.Errorf("it took %v", took)
		}
	})
}
