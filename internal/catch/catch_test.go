package catch

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	prober = netip.MustParseAddrPort("192.0.2.1:5000")
	other  = netip.MustParseAddrPort("192.0.2.2:5000")
)

func fromProber(a netip.Addr) bool { return a == prober.Addr() }

// wantArrival checks what a channel has received. The zero AddrPort means nothing.
func wantArrival(t *testing.T, arrivals <-chan Arrival, from netip.AddrPort) {
	t.Helper()
	var a Arrival
	select {
	case a = <-arrivals:
	default:
	}
	if a.From != from || a.At.IsZero() == from.IsValid() {
		t.Errorf("arrival %+v, want from %v", a, from)
	}
}

// TestMatch checks what a queue with one expectation catches.
func TestMatch(t *testing.T) {
	t.Parallel()
	mapped := netip.AddrPortFrom(netip.AddrFrom16(prober.Addr().As16()), prober.Port())
	const text = "GFWD1 nonce"
	for _, tt := range []struct {
		name              string
		first             string
		from              netip.AddrPort
		matches, mayMatch bool
	}{
		{"the text", text, prober, true, false},
		{"the text, and more", text + "\r\nmore", prober, true, false},
		{"an IPv4-mapped address", text, mapped, true, false},
		{"another nonce", "GFWD1 other", prober, false, false},
		{"another nonce of the same beginning", "GFWD1 noncf", prober, false, false},
		{"another source", text, other, false, false},
		{"another port of the source", text, netip.AddrPortFrom(prober.Addr(), 6000), true, false},
		{"nothing", "", prober, false, true},
		{"nothing from another source", "", other, false, false},
		{"a part", text[:len(text)-1], prober, false, true},
		{"a part, then other text", text[:6] + "x", prober, false, false},
		{"other text", "GET / HTTP/1.1", prober, false, false},
	} {
		var q Queue
		arrivals, remove := q.Expect(Expectation{First: text, From: fromProber, Answer: []byte("answer")})
		answer, matches, mayMatch := q.Match([]byte(tt.first), tt.from)
		if matches != tt.matches || mayMatch != tt.mayMatch || (string(answer) == "answer") != tt.matches {
			t.Errorf("%s: %q, %v, %v", tt.name, answer, matches, mayMatch)
		}
		if q.IsEmpty() != tt.matches {
			t.Errorf("%s: empty %v", tt.name, q.IsEmpty())
		}
		if tt.matches {
			wantArrival(t, arrivals, netip.AddrPortFrom(prober.Addr(), tt.from.Port()))
		} else {
			wantArrival(t, arrivals, netip.AddrPort{})
		}
		if _, again, may := q.Match([]byte(text), prober); tt.matches && (again || may) {
			t.Errorf("%s: the nonce counted twice", tt.name)
		}
		remove()
		remove()
		if !q.IsEmpty() || q.Examines(prober.Addr()) {
			t.Errorf("%s: something is expected after remove", tt.name)
		}
	}
}

// TestMatchSkip checks an expectation that does not know the first bytes.
func TestMatchSkip(t *testing.T) {
	t.Parallel()
	for first, want := range map[string][2]bool{ // matches, mayMatch
		"": {false, true}, "abc": {false, true}, "abcd": {false, true}, "abcdnon": {false, true},
		"abcdnonce": {true, false}, "\x00\x00\x00\x00nonce and more": {true, false}, "nonce": {false, false}, "abcdonce": {false, false},
	} {
		var q Queue
		arrivals, remove := q.Expect(Expectation{First: "nonce", Skip: 4})
		_, matches, mayMatch := q.Match([]byte(first), prober)
		if matches != want[0] || mayMatch != want[1] || len(arrivals) == 1 != matches {
			t.Errorf("%q: %v, %v, want %v", first, matches, mayMatch, want)
		}
		remove()
	}
	var q Queue
	_, remove := q.Expect(Expectation{First: "nonce", Skip: -1})
	defer remove()
	if _, matches, _ := q.Match([]byte("nonce"), prober); !matches {
		t.Error("a negative number counts")
	}
}

// TestMatchSeveral checks that expectations do not disturb each other.
func TestMatchSeveral(t *testing.T) {
	t.Parallel()
	var q Queue
	if q.Examines(prober.Addr()) || !q.IsEmpty() {
		t.Error("the zero Queue expects something")
	}
	first, removeFirst := q.Expect(Expectation{First: "GFWD1 first", From: fromProber, Answer: []byte("1")})
	second, removeSecond := q.Expect(Expectation{First: "GFWD1 second", Answer: []byte("2")})
	table, removeTable := q.Expect(Expectation{Source: func(from netip.AddrPort) bool { return from.Port() == 5000 }, From: fromProber})
	if !q.Examines(other.Addr()) {
		t.Error("the second expectation admits every source")
	}
	if _, matches, mayMatch := q.Match([]byte("GFWD1 first"), other); matches || mayMatch {
		t.Error("a nonce matched from the wrong source")
	}
	if answer, matches, _ := q.Match([]byte("GFWD1 second"), prober); !matches || string(answer) != "2" {
		t.Errorf("second: %q, %v", answer, matches)
	}
	wantArrival(t, first, netip.AddrPort{})
	wantArrival(t, second, prober)
	removeSecond()
	if q.Examines(other.Addr()) {
		t.Error("a source is examined after the expectation that admits it is removed")
	}
	if answer, matches, _ := q.Match([]byte("GFWD1 first"), prober); !matches || string(answer) != "1" {
		t.Errorf("first: %q, %v", answer, matches)
	}
	wantArrival(t, first, prober)
	wantArrival(t, table, netip.AddrPort{})
	removeFirst()
	removeTable()
	if !q.IsEmpty() {
		t.Error("something is expected after remove")
	}
}

// TestSeen checks which connections in the table of sockets are caught.
func TestSeen(t *testing.T) {
	t.Parallel()
	var q Queue
	arrivals, remove := q.Expect(Expectation{First: "GFWD1 nonce", Source: func(from netip.AddrPort) bool { return from.Port() == 5000 }, From: fromProber})
	defer remove()
	byNonce, removeByNonce := q.Expect(Expectation{First: "GFWD1 nonce"})
	defer removeByNonce()
	q.Seen(netip.AddrPortFrom(prober.Addr(), 5001))
	q.Seen(other)
	q.Seen(netip.AddrPortFrom(prober.Addr(), 0))
	wantArrival(t, arrivals, netip.AddrPort{})
	q.Seen(prober)
	q.Seen(prober)
	select {
	case a := <-arrivals:
		if a.From != prober || !a.InTable {
			t.Errorf("%+v", a)
		}
	default:
		t.Error("no arrival")
	}
	wantArrival(t, arrivals, netip.AddrPort{})
	wantArrival(t, byNonce, netip.AddrPort{})
}

// TestRemoveInFrom checks that the functions of a prober may call the queue.
func TestRemoveInFrom(t *testing.T) {
	t.Parallel()
	var (
		q      Queue
		remove func()
	)
	arrivals, remove := q.Expect(Expectation{First: "GFWD1 nonce", From: func(netip.Addr) bool {
		remove()
		return true
	}})
	if _, matches, _ := q.Match([]byte("GFWD1 nonce"), prober); matches {
		t.Error("an expectation that was removed matched")
	}
	wantArrival(t, arrivals, netip.AddrPort{})
}

// FuzzMatch compares Match with its definition, for two expectations.
func FuzzMatch(f *testing.F) {
	f.Add("GFWD1 nonce", "GFWD1 other", "GFWD1 nonce", true)
	f.Add("GFWD1 nonce", "GFWD1 nonce2", "GFWD1 nonc", true)
	f.Add("", "x", "", false)
	f.Fuzz(func(t *testing.T, one, two, first string, expected bool) {
		var q Queue
		from := prober
		if !expected {
			from = other
		}
		expectations := []string{one, two}
		var arrivals []<-chan Arrival
		for _, text := range expectations {
			c, remove := q.Expect(Expectation{First: text, From: fromProber, Answer: []byte(text)})
			defer remove()
			arrivals = append(arrivals, c)
		}
		want := slices.IndexFunc(expectations, func(s string) bool { return expected && s != "" && strings.HasPrefix(first, s) })
		wantMay := want < 0 && expected && slices.ContainsFunc(expectations, func(s string) bool { return s != first && strings.HasPrefix(s, first) })
		answer, matches, mayMatch := q.Match([]byte(first), from)
		if matches != (want >= 0) || mayMatch != wantMay {
			t.Errorf("%v, %v, want index %d, %v", matches, mayMatch, want, wantMay)
		}
		if matches && string(answer) != expectations[want] {
			t.Errorf("answer %q, want %q", answer, expectations[want])
		}
		for i, c := range arrivals {
			select {
			case a := <-c:
				if i != want || a.From != from {
					t.Errorf("arrival %+v of expectation %d", a, i)
				}
			default:
				if i == want {
					t.Error("no arrival")
				}
			}
		}
	})
}
