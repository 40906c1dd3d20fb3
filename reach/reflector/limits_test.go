package reflector

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// checkRetry checks that a request is refused, and that it is still refused one second before the time
// of Retry-After, and served then.
func checkRetry(t *testing.T, status int, request func() *httptest.ResponseRecorder) {
	t.Helper()
	w := request()
	refusalOf(t, w)
	seconds, err := strconv.Atoi(w.Header().Get("Retry-After"))
	if w.Code != status || err != nil || seconds < 1 {
		t.Fatalf("status %d, Retry-After %q, want %d: %s", w.Code, w.Header().Get("Retry-After"), status, w.Body)
	}
	time.Sleep(time.Duration(seconds-1) * time.Second)
	if w := request(); w.Code != status {
		t.Fatalf("status %d after %d s, want %d: %s", w.Code, seconds-1, status, w.Body)
	}
	time.Sleep(time.Second)
	if w := request(); w.Code != http.StatusOK {
		t.Fatalf("status %d after %d s: %s", w.Code, seconds, w.Body)
	}
}

// TestLimitPerHour checks the number of probes of one prefix, in any hour.
func TestLimitPerHour(t *testing.T) {
	for _, c := range []struct{ addr, same, another string }{
		{requester, requester, "45.45.45.10"},
		{"2606:4700:0:aa00::1", "2606:4700:0:aaff:1:2:3:4", "2606:4700:0:ab00::1"},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, Config{Token: token}, echo)
			request := func(addr string, n int, header ...string) *httptest.ResponseRecorder {
				return serve(h, from(post(body(slices.Repeat([]string{tcpProbe(80)}, n)...), header...), addr))
			}
			for i, n := range []int{8, 8, 8, 1, 1, 1, 3} {
				if w := request(c.addr, n); w.Code != http.StatusOK {
					t.Fatalf("request %d: status %d: %s", i, w.Code, w.Body)
				}
				time.Sleep(time.Minute)
			}
			if w := request(c.another, 8); w.Code != http.StatusOK {
				t.Errorf("another prefix: status %d", w.Code)
			}
			time.Sleep(time.Second)
			for range 20 { // the operator has no such limit, and does not count
				if w := request(c.addr, 8, "Authorization", "Bearer "+token); w.Code != http.StatusOK {
					t.Errorf("the operator: status %d: %s", w.Code, w.Body)
				}
				time.Sleep(time.Second)
			}
			begun := time.Now()
			checkRetry(t, http.StatusTooManyRequests, func() *httptest.ResponseRecorder { return request(c.same, 1) })
			if took := time.Since(begun); took != 53*time.Minute-21*time.Second {
				t.Errorf("the first 8 probes count for %v more", took)
			}
			if w := request(c.addr, 7); w.Code != http.StatusOK { // 8 have expired, and one of them was used
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
			checkRetry(t, http.StatusTooManyRequests, func() *httptest.ResponseRecorder { return request(c.addr, 1) })
			if s := h.Stats(); s.Limited != 4 || s.Requests != 35 || s.Busy != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestLimitAtOnce checks the number of requests at once of one prefix, which lasts as long as a
// silent port.
func TestLimitAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{Token: token}, noAnswer)
		var running sync.WaitGroup
		defer running.Wait()
		for range 2 {
			running.Go(func() { serve(h, post(body(tcpProbe(80)))) })
		}
		synctest.Wait()
		running.Go(func() {
			if w := serve(h, from(post(body(tcpProbe(80))), other)); w.Code != http.StatusOK {
				t.Errorf("another address: status %d", w.Code)
			}
		})
		running.Go(func() {
			if w := serve(h, post(body(tcpProbe(80)), "Authorization", "Bearer "+token)); w.Code != http.StatusOK {
				t.Errorf("the operator: status %d", w.Code)
			}
		})
		synctest.Wait()
		w := serve(h, post(body(tcpProbe(80))))
		seconds, _ := strconv.Atoi(w.Header().Get("Retry-After"))
		if w.Code != http.StatusTooManyRequests || seconds != 6 {
			t.Errorf("status %d, Retry-After %d", w.Code, seconds)
		}
		time.Sleep(time.Duration(seconds) * time.Second)
		if w := serve(h, post(body(tcpProbe(80)))); w.Code != http.StatusOK {
			t.Errorf("status %d after %d s", w.Code, seconds)
		}
	})
}

// address returns a public address of its own for each number, below 200000.
func address(i int) string { return fmt.Sprintf("46.%d.%d.%d", i/65536, i/256%256, i%256) }

// TestLimitTotal checks the rate and the number at once of all hosts together.
func TestLimitTotal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, echo)
		n := 0
		request := func() *httptest.ResponseRecorder {
			n++
			return serve(h, from(post(body(tcpProbe(80))), address(n)))
		}
		for range 10 {
			if w := request(); w.Code != http.StatusOK {
				t.Fatalf("request %d: status %d: %s", n, w.Code, w.Body)
			}
		}
		checkRetry(t, http.StatusServiceUnavailable, request)
		time.Sleep(time.Minute)
		served := 0
		for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
			if request().Code == http.StatusOK {
				served++
			}
		}
		if served < 100 || served > 110 { // a burst of 10
			t.Errorf("%d probes in 10 s", served)
		}
		if s := h.Stats(); s.Busy == 0 || s.Limited != 0 {
			t.Errorf("%+v", s)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{Token: token}, noAnswer)
		h.window = time.Minute
		h.limits = newLimits(h.window)
		var running sync.WaitGroup
		defer running.Wait()
		var served atomic.Int32
		for i := range 16 {
			running.Go(func() {
				if w := serve(h, from(post(body(slices.Repeat([]string{tcpProbe(80)}, 4)...)), address(i))); w.Code == http.StatusOK {
					served.Add(1)
				}
			})
			time.Sleep(time.Second)
		}
		for _, header := range [][]string{nil, {"Authorization", "Bearer " + token}} {
			if w := serve(h, from(post(body(tcpProbe(80)), header...), address(100))); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "60" {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		}
		running.Wait()
		if served.Load() != 16 || h.limits.running != 0 {
			t.Errorf("%d requests of 4 probes were served, %d probes are still running", served.Load(), h.limits.running)
		}
	})
}

// TestLimitRequests checks the number of requests of any kind of one prefix. It also bounds guesses of the
// token.
func TestLimitRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{Token: token}, echo)
		for i := range 20 {
			for status, r := range map[int]*http.Request{
				http.StatusUnauthorized: post("", "Authorization", "Bearer x"), http.StatusBadRequest: post(""),
				http.StatusNotFound: httptest.NewRequest(http.MethodGet, "/", nil),
			} {
				if w := serve(h, from(r, requester)); w.Code != status {
					t.Fatalf("request %d: status %d, want %d", i, w.Code, status)
				}
			}
		}
		if w := serve(h, post("", "Authorization", "Bearer x")); w.Code != http.StatusTooManyRequests {
			t.Errorf("another guess of the token: status %d", w.Code)
		}
		if w := serve(h, post(body(tcpProbe(80)), "Authorization", "Bearer "+token)); w.Code != http.StatusOK {
			t.Errorf("the operator: status %d", w.Code)
		}
		time.Sleep(time.Second)
		checkRetry(t, http.StatusTooManyRequests, func() *httptest.ResponseRecorder {
			return serve(h, from(httptest.NewRequest(http.MethodGet, dialback.AddressPath, nil), requester))
		})
	})
}

// TestMemoryBounded checks that requests of very many prefixes do not use more memory than those
// of a few: 100000 requests through the whole handler, of which about each second one is a probe that
// is served.
func TestMemoryBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, echo)
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		text := body(tcpProbe(80))
		get, probe := httptest.NewRequest(http.MethodGet, dialback.AddressPath, nil), post(text)
		var before, served uint64
		for i := range 100_000 {
			if i == 50_000 { // the table is full, and its size does not change
				before = heap()
			}
			r := *get // a copy is cheaper than a new request
			if i%2 == 0 {
				r = *probe
				r.Body = io.NopCloser(strings.NewReader(text))
				time.Sleep(time.Second / probesPerSecond)
			}
			r.RemoteAddr = address(i) + ":40000"
			w := &countingReply{header: http.Header{}}
			if h.ServeHTTP(w, &r); w.status == http.StatusOK {
				served++
			}
		}
		after := heap()
		if n := h.limits.len(); n != maxClients || h.limits.recent.Len() != n || served != 100_000 {
			t.Errorf("%d prefixes are remembered after %d requests", n, served)
		}
		t.Logf("heap: %d KiB, then %d KiB", before>>10, after>>10)
		if after > before+4<<20 { // the prefixes of the requests in between would need 15 MiB
			t.Errorf("the heap grew from %d to %d bytes", before, after)
		}
	})
}

// countingReply is a reply without its bytes.
type countingReply struct {
	header http.Header
	status int
}

func (r *countingReply) Header() http.Header         { return r.header }
func (r *countingReply) WriteHeader(status int)      { r.status = status }
func (r *countingReply) Write(b []byte) (int, error) { return len(b), nil }
func (r *countingReply) Flush()                      {}

// TestForget checks that a prefix with a running request stays, so that it can have no more of them.
func TestForget(t *testing.T) {
	l := newLimits(time.Second)
	p := clientPrefix(netip.MustParseAddr(requester))
	release, err := l.admit(p, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxClients {
		if err := l.visit(clientPrefix(netip.MustParseAddr(address(i)))); err != nil {
			t.Fatal(err)
		}
	}
	if c := l.get(p); c.running != 1 || l.len() != maxClients {
		t.Errorf("%+v of %d", c, l.len())
	}
	release()
	for i := range 2 * maxClients {
		_ = l.visit(clientPrefix(netip.MustParseAddr(address(i))))
	}
	if _, ok := l.byPrefix[p]; ok {
		t.Error("a prefix without requests stays")
	}
}
