package reflector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
)

func TestConfig(t *testing.T) {
	addr := netip.MustParseAddr
	for name, config := range map[string]Config{
		"zero": {},
		"all": {
			DialFrom: []netip.Addr{addr("127.0.0.1"), addr("::1")}, TrustProxy: prefixes("10.0.0.1/8", "::1/128"),
			Allow: prefixes("0.0.0.0/0"), Deny: prefixes("::/0"), Token: token, Log: slog.New(slog.DiscardHandler),
		},
		"error: a source that this host does not have": {DialFrom: []netip.Addr{addr("192.0.2.1")}},
		"error: no source":                 {DialFrom: []netip.Addr{{}}},
		"error: two sources":               {DialFrom: []netip.Addr{addr("127.0.0.1"), addr("::ffff:127.0.0.2")}},
		"error: a proxy everywhere":        {TrustProxy: prefixes("10.0.0.0/8", "0.0.0.0/0")},
		"error: no prefix":                 {Allow: make([]netip.Prefix, 1)},
		"error: IPv4-mapped":               {Deny: prefixes("::ffff:10.0.0.0/104")},
		"error: a short token":             {Token: "secret"},
		"error: a token with a space":      {Token: token + " " + token},
		"error: a token with a line break": {Token: token + "\n"},
	} {
		if config.DialFrom != nil && name == "all" && !hasIPv6() {
			config.DialFrom = config.DialFrom[:1]
		}
		h, err := New(config)
		if isError := strings.HasPrefix(name, "error"); isError != errors.Is(err, backends.ErrInvalid) || isError != (h == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func hasIPv6() bool {
	_, err := New(Config{DialFrom: []netip.Addr{netip.IPv6Loopback()}})
	return err == nil
}

// TestDialFrom checks from which address the reflector connects, for each family.
func TestDialFrom(t *testing.T) {
	var got netip.Addr
	h := newHandler(t, Config{DialFrom: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
		got = c.From
		return echo(c, ctx, announce)
	})
	for addr, want := range map[string]netip.Addr{requester: netip.MustParseAddr("127.0.0.1"), "2606:4700::9": {}} {
		serve(h, from(post(body(tcpProbe(80))), addr))
		if got != want {
			t.Errorf("to %s from %v", addr, got)
		}
	}
}

// TestInvalidRequests checks the refusals of requests, and that nothing is sent for them.
func TestInvalidRequests(t *testing.T) {
	many := slices.Repeat([]string{tcpProbe(80)}, 9)
	for _, c := range []struct {
		name   string
		r      *http.Request
		status int
	}{
		{"another path", httptest.NewRequest(http.MethodGet, "/", nil), 404},
		{"a longer path", httptest.NewRequest(http.MethodPost, dialback.ProbePath+"/", nil), 404},
		{"GET of the probes", httptest.NewRequest(http.MethodGet, dialback.ProbePath, nil), 405},
		{"OPTIONS", httptest.NewRequest(http.MethodOptions, dialback.ProbePath, nil), 405},
		{"CONNECT", httptest.NewRequest(http.MethodConnect, other+":80", nil), 404},
		{"POST of the address", httptest.NewRequest(http.MethodPost, dialback.AddressPath, nil), 405},
		{"an empty body", post(""), 400},
		{"no JSON", post("port=80"), 400},
		{"null", post("null"), 400},
		{"an array", post("[" + body(tcpProbe(80)) + "]"), 400},
		{"half", post(body(tcpProbe(80))[:30]), 400},
		{"text after it", post(body(tcpProbe(80)) + "x"), 400},
		{"two requests", post(body(tcpProbe(80)) + body(tcpProbe(81))), 400},
		{"no version", post(strings.Replace(body(tcpProbe(80)), `"v":1,`, "", 1)), 400},
		{"version 2", post(strings.Replace(body(tcpProbe(80)), `"v":1`, `"v":2`, 1)), 400},
		{"no probes", post(body()), 400},
		{"nine probes", post(body(many...)), 400},
		{"no protocol", post(body(`{"port":80}`)), 400},
		{"another protocol", post(body(probeOf("sctp", 80))), 400},
		{"an unknown protocol", post(body(probeOf("icmp", 80))), 400},
		{"no port", post(body(tcpProbe(0))), 400},
		{"a port too high", post(body(`{"protocol":"tcp","port":65536}`)), 400},
		{"a negative port", post(body(`{"protocol":"tcp","port":-1}`)), 400},
		{"a port as text", post(body(`{"protocol":"tcp","port":"80"}`)), 400},
		{"other bytes as nonce", post(body(`{"protocol":"tcp","port":80,"nonce":"EHLO example.com\r\n...."}`)), 400},
		{"lines as nonce", post(body(`{"protocol":"tcp","port":80,"nonce":"AAAA\nFLUSHALL\nAAAAAAAA"}`)), 400},
		{"a short nonce", post(body(`{"protocol":"tcp","port":80,"nonce":"AAAA"}`)), 400},
		{"another want", post(body(fmt.Sprintf(`{"protocol":"tcp","port":80,"nonce":%q,"want":"x"}`, nonce))), 400},
		{"want is the nonce", post(body(fmt.Sprintf(`{"protocol":"tcp","port":80,"nonce":%q,"want":%q}`, nonce, nonce))), 400},
		{"want without a nonce", post(body(fmt.Sprintf(`{"protocol":"tcp","port":80,"want":%q}`, want))), 400},
		{"UDP without a nonce", post(body(`{"protocol":"udp","port":80}`)), 400},
		{"UDP without want", post(body(fmt.Sprintf(`{"protocol":"udp","port":80,"nonce":%q}`, nonce))), 400},
		{"one invalid probe", post(body(tcpProbe(80), tcpProbe(0))), 400},
		{"too many bytes", post(body(tcpProbe(80)) + strings.Repeat(" ", 4096)), 413},
		{"too deep", post(strings.Repeat("[", 4096)), 400},
	} {
		h := newHandler(t, Config{}, func(dialback.Call, context.Context, func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			t.Errorf("%s: connected", c.name)
			return "", 0, nil
		})
		w := serve(h, from(c.r, requester))
		refusalOf(t, w)
		if w.Code != c.status || c.status == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" || h.Stats().Refused != 1 {
			t.Errorf("%s: status %d, want %d: %s", c.name, w.Code, c.status, w.Body)
		}
	}
}

// TestWebPages checks that no web page can make the browser of a visitor send requests: they need
// a Content-Type for which browsers ask first, and no site is allowed it. A page of a name that resolves
// to the reflector (DNS rebinding) is not another site for the browser, but has an origin.
func TestWebPages(t *testing.T) {
	h := newHandler(t, Config{}, func(dialback.Call, context.Context, func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
		t.Error("connected")
		return "", 0, nil
	})
	text := body(tcpProbe(80))
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json-x", "text/plain, application/json", "application/json;;"} {
		r := post(text)
		r.Header.Set("Content-Type", kind)
		if w := serve(h, r); w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("%q: status %d", kind, w.Code)
		}
	}
	for _, header := range [][]string{{"Origin", "http://example.com"}, {"Origin", "null"}, {"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "cross-site"}} {
		if w := serve(h, post(text, header...)); w.Code != http.StatusForbidden {
			t.Errorf("%q: status %d", header, w.Code)
		}
	}
	preflight := from(httptest.NewRequest(http.MethodOptions, dialback.ProbePath, nil), requester)
	preflight.Header.Set("Origin", "http://example.com")
	preflight.Header.Set("Access-Control-Request-Method", "POST")
	w := serve(h, preflight)
	for name := range w.Header() {
		if strings.HasPrefix(name, "Access-Control") {
			t.Errorf("the reply has %s", name)
		}
	}
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("status %d", w.Code)
	}
	h.dial = echo
	r := post(text)
	r.Header.Set("Content-Type", "Application/JSON; charset=utf-8")
	if w := serve(h, r); w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
}

// TestProhibitedPorts checks that strangers cannot reach the ports of services that are abused or
// sensitive, and that the page lists them.
func TestProhibitedPorts(t *testing.T) {
	page, err := os.ReadFile("../../docs/reflector.md")
	if err != nil {
		t.Fatal(err)
	}
	list := fmt.Sprint(prohibited)
	if list = strings.ReplaceAll(strings.Trim(list, "[]"), " ", ", "); !strings.Contains(strings.Join(strings.Fields(string(page)), " "), list) {
		t.Errorf("docs/reflector.md does not list the ports %s", list)
	}
	for _, port := range []uint16{23, 25, 139, 445, 465, 587, 3389} {
		if !slices.Contains(prohibited, port) {
			t.Errorf("port %d is not prohibited", port)
		}
	}
	calls := 0
	h := newHandler(t, Config{Token: token}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
		calls++
		return echo(c, ctx, announce)
	})
	for _, port := range prohibited {
		for _, protocol := range []string{"tcp", "udp"} {
			w := serve(h, post(body(tcpProbe(80), probeOf(protocol, port))))
			if text := refusalOf(t, w); w.Code != http.StatusForbidden || !strings.Contains(text, "port "+strconv.Itoa(int(port))+" ") || calls != 0 {
				t.Errorf("%s port %d: %d %s", protocol, port, w.Code, text)
			}
		}
	}
	for i := range h.limits.rest(netip.MustParseAddr(requester)) { // refusals do not count as probes
		if w := serve(h, post(body(tcpProbe(prohibited[i%len(prohibited)])), "Authorization", "Bearer "+token)); w.Code != http.StatusOK || calls != i+1 {
			t.Errorf("with the token: %d %s", w.Code, w.Body)
		}
		h.limits.paid = 0
	}
	if calls != probesPerHour {
		t.Errorf("%d calls", calls)
	}
}

// rest returns the number of probes that an address can have in this hour.
func (l *limits) rest(addr netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return probesPerHour - len(l.get(clientPrefix(addr)).probes)
}

// timedReply is a reply with the time of each flush.
type timedReply struct {
	httptest.ResponseRecorder
	begun time.Time
	parts []string // the time and the bytes
	seen  int
}

func newTimedReply() *timedReply {
	return &timedReply{ResponseRecorder: httptest.ResponseRecorder{Body: new(bytes.Buffer)}, begun: time.Now()}
}

func (r *timedReply) Flush() {
	r.parts = append(r.parts, fmt.Sprintf("%v %s", time.Since(r.begun), r.Body.String()[r.seen:]))
	r.seen = r.Body.Len()
}

// calls are all the ways in which a call can end without an answer. Each announces first.
var calls = map[string]func(ctx context.Context) (dialback.Outcome, time.Duration, error){
	"refused at once": func(context.Context) (dialback.Outcome, time.Duration, error) {
		return dialback.Refused, time.Millisecond, nil
	},
	"filtered": func(ctx context.Context) (dialback.Outcome, time.Duration, error) {
		<-ctx.Done()
		return dialback.TimedOut, 0, nil
	},
	"another service": func(context.Context) (dialback.Outcome, time.Duration, error) {
		time.Sleep(30 * time.Millisecond)
		return dialback.Connected, 30 * time.Millisecond, nil
	},
	"half an answer": func(ctx context.Context) (dialback.Outcome, time.Duration, error) {
		<-ctx.Done()
		return dialback.Connected, time.Millisecond, nil
	},
	"datagrams without an answer": func(context.Context) (dialback.Outcome, time.Duration, error) {
		time.Sleep(3 * time.Second)
		return dialback.Sent, 0, nil
	},
	"no route": func(context.Context) (dialback.Outcome, time.Duration, error) {
		time.Sleep(time.Second)
		return "", 0, errors.New("no route to host")
	},
}

func announced(call func(ctx context.Context) (dialback.Outcome, time.Duration, error)) func(dialback.Call, context.Context, func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
	return func(_ dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
		announce(source)
		return call(ctx)
	}
}

// TestConstantTime checks that a stranger gets the same bytes at the same times in any case except an
// answer with the right nonce: a line at once, and another one after exactly five seconds.
func TestConstantTime(t *testing.T) {
	for _, probe := range []string{tcpProbe(80), probeOf("udp", 80), `{"protocol":"tcp","port":80}`} {
		protocol := probe[len(`{"protocol":"`):][:3]
		head := fmt.Sprintf(`"protocol":%q,"port":80,"address":%q`, protocol, requester)
		want := []string{
			fmt.Sprintf("0s {\"state\":\"dialing\",%s,\"from\":%q}\n", head, source),
			fmt.Sprintf("5s {\"state\":\"done\",%s,\"result\":\"silent\"}\n", head),
		}
		for name, call := range calls {
			synctest.Test(t, func(t *testing.T) {
				h, w := newHandler(t, Config{}, announced(call)), newTimedReply()
				h.ServeHTTP(w, post(body(probe)))
				if !slices.Equal(w.parts, want) || time.Since(w.begun) != 5*time.Second {
					t.Errorf("%s, %s: after %v %q, want %q", probe, name, time.Since(w.begun), w.parts, want)
				}
			})
		}
	}
}

// TestConstantOrder checks that the order of the lines depends only on the order of the
// announcements, so that a port whose state is known reveals nothing about another one.
func TestConstantOrder(t *testing.T) {
	names := []string{"refused at once", "filtered", "another service", "half an answer", "datagrams without an answer", "no route"}
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
				if c.To.Port() == 90 { // an answer in between changes nothing
					announce(source)
					time.Sleep(time.Second)
					return dialback.Echoed, time.Second, nil
				}
				time.Sleep(time.Duration(c.To.Port()) * 10 * time.Millisecond) // so that they differ
				return announced(calls[names[c.To.Port()-80]])(c, ctx, announce)
			})
			var probes []string
			for i := range names {
				probes = append(probes, tcpProbe(uint16(80+i))) //nolint:gosec // a few
			}
			w := newTimedReply()
			h.ServeHTTP(w, post(body(append(probes, tcpProbe(90))...)))
			at := map[string]time.Duration{}
			for _, part := range w.parts {
				after, text, _ := strings.Cut(part, " ")
				line := lines(t, bytes.NewBufferString(text))[0]
				d, _ := time.ParseDuration(after)
				at[fmt.Sprint(line.Port, line.State)] = d
				if line.Port != 90 && line.Result == dialback.Echoed || line.Port == 90 && line.Result == dialback.Silent {
					t.Errorf("port %d: %s", line.Port, line.Result)
				}
			}
			for i := range names {
				if took := at[fmt.Sprint(80+i, "done")] - at[fmt.Sprint(80+i, "dialing")]; took != 5*time.Second {
					t.Errorf("%s: the result came %v after the announcement", names[i], took)
				}
			}
		})
	}
}

// TestSameInstant checks the same for announcements at the same time.
func TestSameInstant(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
				return announced(calls[[]string{"filtered", "refused at once"}[c.To.Port()%2]])(c, ctx, announce)
			})
			w := newTimedReply()
			h.ServeHTTP(w, post(body(tcpProbe(81), tcpProbe(82), tcpProbe(83), tcpProbe(84))))
			var order [2][]uint16
			for _, line := range lines(t, w.Body) {
				i := map[string]int{dialback.StateDialing: 0, dialback.StateDone: 1}[line.State]
				order[i] = append(order[i], line.Port)
			}
			if len(order[0]) != 4 || !slices.Equal(order[0], order[1]) {
				t.Errorf("announced %v, done %v", order[0], order[1])
			}
		})
	}
}

// TestLateAnswer checks that an answer after the result changes nothing, also for other probes.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, func(c dialback.Call, _ context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			if c.To.Port() == 82 {
				time.Sleep(3 * time.Second)
			}
			announce(source)
			time.Sleep(6 * time.Second) // the end of the context is noticed too late
			return dialback.Echoed, 6 * time.Second, nil
		})
		w := newTimedReply()
		h.ServeHTTP(w, post(body(tcpProbe(81), tcpProbe(82))))
		var results []string
		for _, line := range lines(t, w.Body) {
			if line.State == dialback.StateDone {
				results = append(results, fmt.Sprint(line.Port, line.Result))
			}
		}
		if want := []string{"81silent", "82silent"}; !slices.Equal(results, want) {
			t.Errorf("the results are %v, want %v", results, want)
		}
	})
}

// TestEchoed checks that an answer is reported at once, and that the reply is a stream that proxies do not keep.
func TestEchoed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, w := newHandler(t, Config{}, announced(func(context.Context) (dialback.Outcome, time.Duration, error) {
			time.Sleep(130 * time.Millisecond)
			return dialback.Echoed, 30123456 * time.Nanosecond, nil
		})), newTimedReply()
		h.ServeHTTP(w, post(body(tcpProbe(80))))
		want := []string{
			"0s " + `{"state":"dialing","protocol":"tcp","port":80,"address":"45.45.45.9","from":"45.45.45.2:50000"}` + "\n",
			"130ms " + `{"state":"done","protocol":"tcp","port":80,"address":"45.45.45.9","result":"echoed","rtt_ms":30.123}` + "\n",
		}
		if !slices.Equal(w.parts, want) || w.Code != http.StatusOK {
			t.Errorf("%d %q", w.Code, w.parts)
		}
		for name, value := range map[string]string{
			"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no", "Cache-Control": "no-store", "Connection": "close", "X-Content-Type-Options": "nosniff",
		} {
			if got := w.Header().Get(name); got != value {
				t.Errorf("%s: %q", name, got)
			}
		}
		if s := h.Stats(); s != (Stats{Requests: 1, Probes: 1, Echoed: 1}) {
			t.Errorf("%+v", s)
		}
	})
}

// TestFailed checks the reply if the reflector itself cannot make a call. Nothing was announced or
// sent, so it says nothing about the port.
func TestFailed(t *testing.T) {
	fail := func(dialback.Call, context.Context, func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
		return "", 0, errors.New("too many open files")
	}
	h := newHandler(t, Config{Token: token}, fail)
	if w := serve(h, post(body(tcpProbe(80)))); w.Body.String() != `{"state":"done","protocol":"tcp","port":80,"address":"45.45.45.9","result":"failed"}`+"\n" {
		t.Errorf("%s", w.Body)
	}
	if w := serve(h, post(body(tcpProbe(80)), "Authorization", "bearer "+token)); !strings.HasSuffix(w.Body.String(), `"result":"failed","error":"too many open files"}`+"\n") {
		t.Errorf("%s", w.Body)
	}
}

// TestToken checks that the operator gets complete results at once, and that a wrong token is an error.
func TestToken(t *testing.T) {
	want := map[string]string{
		"refused at once":             `1ms "result":"refused","rtt_ms":1}`,
		"filtered":                    `4.9s "result":"timeout"}`,
		"another service":             `30ms "result":"connected","rtt_ms":30}`,
		"half an answer":              `4.9s "result":"connected","rtt_ms":1}`,
		"datagrams without an answer": `3s "result":"sent"}`,
		"no route":                    `1s "result":"failed","error":"no route to host"}`,
	}
	for name, call := range calls {
		synctest.Test(t, func(t *testing.T) {
			h, w := newHandler(t, Config{Token: token}, announced(call)), newTimedReply()
			h.ServeHTTP(w, post(body(tcpProbe(80)), "Authorization", "Bearer "+token))
			if len(w.parts) != 2 || !strings.HasPrefix(w.parts[0], `0s {"state":"dialing"`) {
				t.Fatalf("%s: %q", name, w.parts)
			}
			after, text, _ := strings.Cut(w.parts[1], " ")
			_, text, _ = strings.Cut(text, `"address":"`+requester+`",`)
			if name == "refused at once" {
				after = "1ms" // it takes no time here
			}
			if got := after + " " + strings.TrimSpace(text); got != want[name] {
				t.Errorf("%s: %s, want %s", name, got, want[name])
			}
		})
	}
	for _, c := range []struct {
		config Config
		header []string
	}{
		{Config{Token: token}, []string{"Authorization", "Bearer " + token[1:]}},
		{Config{Token: token}, []string{"Authorization", "Bearer " + token + "0"}},
		{Config{Token: token}, []string{"Authorization", "Bearer "}},
		{Config{Token: token}, []string{"Authorization", ""}},
		{Config{Token: token}, []string{"Authorization", token}},
		{Config{Token: token}, []string{"Authorization", "Basic " + token}},
		{Config{Token: token}, []string{"Authorization", "Bearer " + token, "Authorization", "Bearer x"}},
		{Config{}, []string{"Authorization", "Bearer " + token}},
		{Config{}, []string{"Authorization", "Bearer "}},
	} {
		h := newHandler(t, c.config, func(dialback.Call, context.Context, func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			t.Errorf("%q: connected", c.header)
			return "", 0, nil
		})
		w := serve(h, post(body(tcpProbe(80)), c.header...))
		if refusalOf(t, w); w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%q: %d %s", c.header, w.Code, w.Body)
		}
	}
}

// TestClientGone checks that the end of the request ends its calls at once, and that the handler
// waits for them.
func TestClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int32
		h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			defer ended.Add(1)
			defer time.Sleep(time.Millisecond)
			return noAnswer(c, ctx, announce)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		serve(h, post(body(tcpProbe(80), tcpProbe(81))).WithContext(ctx))
		if took := time.Since(begun); took != time.Second+time.Millisecond || ended.Load() != 2 {
			t.Errorf("ended after %v, and %d calls had ended", took, ended.Load())
		}
		if h.limits.running != 0 {
			t.Errorf("%d probes still count as running", h.limits.running)
		}
	})
}

// brokenReply is a reply to a client that does not read.
type brokenReply struct{ *httptest.ResponseRecorder }

func (brokenReply) Write([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestReplyFails checks that the reflector does not connect if the announcement cannot be sent.
func TestReplyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, func(_ dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			announce(source)
			if isSent(ctx) {
				t.Error("the call goes on")
			}
			return "", 0, ctx.Err()
		})
		h.ServeHTTP(brokenReply{httptest.NewRecorder()}, post(body(tcpProbe(80), tcpProbe(81))))
	})
}

// TestLogsTruncated checks that no log has an address or a port, and that nothing about requests
// is logged by default.
func TestLogsTruncated(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		var b bytes.Buffer
		h := newHandler(t, Config{Token: token, Log: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level}))}, echo)
		for _, addr := range []string{"45.45.45.199", "2606:4700:1234:5678::9", "10.1.2.199"} {
			serve(h, from(post(body(tcpProbe(48123)), "User-Agent", "secret-agent"), addr))
			serve(h, from(post(body(tcpProbe(48123)), "Authorization", "Bearer "+token), addr))
			serve(h, from(post("x"), addr))
			serve(h, from(httptest.NewRequest(http.MethodGet, dialback.AddressPath, nil), addr))
		}
		h.logStats()
		text := b.String()
		for _, secret := range []string{"45.45.45.1", "45.45.45.199", "5678", "10.1.2.199", "48123", nonce, want, token, "secret-agent"} {
			if strings.Contains(text, secret) {
				t.Errorf("the log has %s:\n%s", secret, text)
			}
		}
		for _, part := range []string{"45.45.45.0/24", "2606:4700:1234::/48"} {
			if strings.Contains(text, part) != (level == slog.LevelDebug) {
				t.Errorf("at level %v, the log has %s:\n%s", level, part, text)
			}
		}
		if !strings.Contains(text, "requests=12") || !strings.Contains(text, "echoed=4") {
			t.Errorf("the log has no counts:\n%s", text)
		}
	}
}

// FuzzProbes checks that any body results in valid probes or a refusal.
func FuzzProbes(f *testing.F) {
	for _, s := range []string{body(tcpProbe(80)), body(probeOf("udp", 1), `{"protocol":"tcp","port":80}`), `{"v":1,"probes":[{}]}`, "null", "[]", `{"v":1e0}`, `{"V":1,"PROBES":[]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, isOperator := range []bool{true, false} {
			probes, err := parseProbes([]byte(s), isOperator)
			var no *refusal
			if err != nil {
				if !errors.As(err, &no) || no.status < 400 || no.status > 499 || len(no.text) > 300 {
					t.Errorf("%q: %v", s, err)
				}
				continue
			}
			if len(probes) < 1 || len(probes) > dialback.MaxProbes {
				t.Errorf("%q: %d probes", s, len(probes))
			}
			out := 0 // bytes that are sent
			for _, p := range probes {
				isNonces := (p.Nonce == "" || dialback.IsNonce(p.Nonce)) && (p.Want == "" || dialback.IsNonce(p.Want) && p.Want != p.Nonce)
				if p.Port == 0 || !isNonces || p.Protocol != backends.TCP && p.Protocol != backends.UDP || !isOperator && slices.Contains(prohibited, p.Port) {
					t.Errorf("%q: %+v", s, p)
				}
				if p.Nonce != "" {
					out += 28 * map[backends.Protocol]int{backends.TCP: 1, backends.UDP: 3}[p.Protocol]
				}
			}
			if !isOperator && out >= len(s) {
				t.Errorf("%q has %d bytes, and causes %d", s, len(s), out)
			}
		}
	})
}
