package catch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

const text = "GFWD1 0123456789abcdefghijkl"

// pair returns both ends of a connection.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

func write(t testing.TB, conn *net.TCPConn, s string) {
	t.Helper()
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal(err)
	}
}

func closeWrite(t testing.TB, conn *net.TCPConn) {
	t.Helper()
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func addrOf(conn net.Conn) netip.AddrPort {
	return conn.LocalAddr().(*net.TCPAddr).AddrPort()
}

func skipUnsupported(t testing.TB) {
	if !Supported {
		t.Skip("connections cannot be examined on this system")
	}
}

// never is a timeout that no test reaches.
const never = time.Hour

// reporting returns an expectation that reports each comparison with the bytes that have arrived.
func reporting(compared chan<- struct{}) Expectation {
	return Expectation{First: text, Answer: []byte("answer"), From: func(netip.Addr) bool {
		compared <- struct{}{}
		return true
	}}
}

// TestConnCaught checks that a connection that begins with the expected text receives the answer
// and then the end of the stream, also if its first bytes arrive one by one, and if it sends more.
func TestConnCaught(t *testing.T) {
	t.Parallel()
	skipUnsupported(t)
	for name, segments := range map[string][]string{
		"one segment":         {text},
		"more than the text":  {text + "\r\n" + strings.Repeat("x", 100)},
		"several segments":    {"G", "FWD1 ", text[6:10], text[10:]},
		"more after the text": {text[:5], text[5:], "Host: example\r\n", strings.Repeat("x", 5000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server := pair(t)
			q := Queue{Timeout: never}
			compared := make(chan struct{}, 100)
			arrivals, remove := q.Expect(reporting(compared))
			defer remove()
			caught := make(chan bool, 1)
			go func() { caught <- q.Conn(t.Context(), server) }()
			<-compared // by Examines
			sent := ""
			for _, s := range segments {
				write(t, client, s)
				if sent += s; len(sent) <= len(text) {
					<-compared // the bytes so far were seen as a segment of their own
				}
			}
			closeWrite(t, client)
			if answer, err := io.ReadAll(client); err != nil || string(answer) != "answer" {
				t.Errorf("answer %q, %v", answer, err)
			}
			if !<-caught {
				t.Error("not caught")
			}
			wantArrival(t, arrivals, addrOf(client))
			if _, err := server.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is open: %v", err)
			}
		})
	}
}

// TestConnNoAnswer checks that a connection is also closed if the expectation has no answer.
func TestConnNoAnswer(t *testing.T) {
	t.Parallel()
	skipUnsupported(t)
	client, server := pair(t)
	q := Queue{Timeout: never}
	arrivals, remove := q.Expect(Expectation{First: text})
	defer remove()
	write(t, client, text)
	closeWrite(t, client)
	if !q.Conn(t.Context(), server) {
		t.Error("not caught")
	}
	wantArrival(t, arrivals, addrOf(client))
	if b, err := io.ReadAll(client); err != nil || len(b) > 0 {
		t.Errorf("read %q, %v", b, err)
	}
}

// TestConnLeft checks that every other connection is left with all of its bytes, and without a
// deadline: each prefix of the expected text followed by other bytes, in one segment or two, or by
// the end of the stream.
func TestConnLeft(t *testing.T) {
	t.Parallel()
	for n := range len(text) {
		for name, segments := range map[string][]string{
			"one segment":  {text[:n] + "#" + text[n+1:] + "and more"},
			"two segments": {text[:n], "#and more"},
			"the end":      {text[:n]},
		} {
			t.Run(fmt.Sprintf("%d bytes, %s", n, name), func(t *testing.T) {
				t.Parallel()
				client, server := pair(t)
				q := Queue{Timeout: never}
				if name == "the end" {
					q.Timeout = time.Millisecond
				}
				compared := make(chan struct{}, 100)
				arrivals, remove := q.Expect(reporting(compared))
				defer remove()
				caught := make(chan bool, 1)
				go func() { caught <- q.Conn(t.Context(), server) }()
				<-compared // by Examines
				for i, s := range segments {
					write(t, client, s)
					if Supported && i < len(segments)-1 && n > 0 {
						<-compared
					}
				}
				closeWrite(t, client)
				if <-caught {
					t.Fatal("caught")
				}
				wantLeft(t, server, strings.Join(segments, ""))
				wantArrival(t, arrivals, netip.AddrPort{})
				if q.IsEmpty() {
					t.Error("the expectation is gone")
				}
				if err := server.SetDeadline(time.Time{}); err != nil {
					t.Error(err)
				}
				write(t, server, "reply")
				_ = server.CloseWrite()
				if reply, err := io.ReadAll(client); err != nil || string(reply) != "reply" {
					t.Errorf("reply %q, %v", reply, err)
				}
			})
		}
	}
}

// wantLeft checks the bytes that a program reads from a connection.
func wantLeft(t *testing.T, server *net.TCPConn, want string) {
	t.Helper()
	if b, err := io.ReadAll(server); err != nil || string(b) != want {
		t.Errorf("the program reads %q, %v; want %q", b, err, want)
	}
}

// TestConnSilent checks that a program gets the connection of a silent peer after a while, and that
// it reads what the peer sends later.
func TestConnSilent(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"", text[:10]} {
		client, server := pair(t)
		q := Queue{Timeout: time.Millisecond}
		arrivals, remove := q.Expect(Expectation{First: text})
		defer remove()
		write(t, client, first)
		if q.Conn(t.Context(), server) {
			t.Error("caught")
		}
		late := text[len(first):]
		write(t, client, late)
		closeWrite(t, client)
		wantLeft(t, server, text) // too late to be caught
		wantArrival(t, arrivals, netip.AddrPort{})
	}
}

// TestConnClosed checks peers that close or reset the connection at once.
func TestConnClosed(t *testing.T) {
	t.Parallel()
	for _, reset := range []bool{false, true} {
		client, server := pair(t)
		q := Queue{Timeout: never}
		arrivals, remove := q.Expect(Expectation{First: text})
		defer remove()
		if reset {
			_ = client.SetLinger(0)
		}
		_ = client.Close()
		if q.Conn(t.Context(), server) {
			t.Error("caught")
		}
		if b, err := io.ReadAll(server); len(b) > 0 || err != nil && !reset {
			t.Errorf("reset %v: the program reads %q, %v", reset, b, err)
		}
		wantArrival(t, arrivals, netip.AddrPort{})
	}
	_, server := pair(t)
	_ = server.Close()
	var q Queue
	_, remove := q.Expect(Expectation{First: text})
	defer remove()
	if q.Conn(t.Context(), server) {
		t.Error("a connection that the program has closed was caught")
	}
}

// TestConnNotExamined checks that connections from other sources are not examined, and no
// connection if nothing is expected: Conn does not replace their read deadline.
func TestConnNotExamined(t *testing.T) {
	t.Parallel()
	for name, expect := range map[string]func(*Queue){
		"nothing is expected": func(*Queue) {},
		"another source":      func(q *Queue) { q.Expect(Expectation{First: text, From: fromProber}) },
	} {
		client, server := pair(t)
		var q Queue
		expect(&q)
		write(t, client, text)
		if err := server.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if q.Conn(t.Context(), server) {
			t.Errorf("%s: caught", name)
		}
		if n, err := server.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v; the deadline was replaced", name, n, err)
		}
		_ = server.SetReadDeadline(time.Time{})
		closeWrite(t, client)
		wantLeft(t, server, text)
	}
}

// TestConnOnce checks that a nonce catches only the first of two connections, and that the
// program gets the second one.
func TestConnOnce(t *testing.T) {
	t.Parallel()
	skipUnsupported(t)
	q := Queue{Timeout: never}
	arrivals, remove := q.Expect(Expectation{First: text})
	defer remove()
	otherArrivals, removeOther := q.Expect(Expectation{First: "GFWD1 other"}) // so that the second connection is examined
	defer removeOther()
	client, server := pair(t)
	write(t, client, text)
	closeWrite(t, client)
	if !q.Conn(t.Context(), server) {
		t.Error("not caught")
	}
	again, program := pair(t)
	write(t, again, text)
	closeWrite(t, again)
	if q.Conn(t.Context(), program) {
		t.Error("the nonce counted twice")
	}
	wantLeft(t, program, text)
	wantArrival(t, arrivals, addrOf(client))
	wantArrival(t, arrivals, netip.AddrPort{})
	wantArrival(t, otherArrivals, netip.AddrPort{})
}

// TestConnLong checks that a connection that begins with more bytes than MaxFirst is left, and that
// an expected text of MaxFirst bytes is caught.
func TestConnLong(t *testing.T) {
	t.Parallel()
	skipUnsupported(t)
	long := strings.Repeat("x", MaxFirst)
	client, server := pair(t)
	q := Queue{Timeout: never}
	arrivals, remove := q.Expect(Expectation{First: long})
	defer remove()
	write(t, client, long+"more")
	closeWrite(t, client)
	if !q.Conn(t.Context(), server) {
		t.Error("not caught")
	}
	wantArrival(t, arrivals, addrOf(client))
	client, server = pair(t)
	arrivals, remove = q.Expect(Expectation{First: long + "more"}) // not valid: too long
	defer remove()
	write(t, client, long+"more")
	closeWrite(t, client)
	if q.Conn(t.Context(), server) {
		t.Error("caught")
	}
	if b, err := io.ReadAll(server); err != nil || !bytes.Equal(b, []byte(long+"more")) {
		t.Errorf("the program reads %q, %v", b, err)
	}
	wantArrival(t, arrivals, netip.AddrPort{})
}

// TestConnEnded checks that the end of the context ends the examination, but not an answer.
func TestConnEnded(t *testing.T) {
	q := Queue{Timeout: never}
	ctx, cancel := context.WithCancel(t.Context())
	arrived, remove := q.Expect(Expectation{First: "GET /nonce", Answer: []byte("answer")})
	defer remove()
	client, server := pair(t)
	silentClient, silent := pair(t)
	defer silentClient.Close()
	results := make(chan bool, 2)
	go func() { results <- q.Conn(ctx, silent) }()
	_, _ = io.WriteString(client, "GET /nonce")
	go func() {
		<-arrived
		cancel() // the prober has its arrival
		_ = client.CloseWrite()
	}()
	if !q.Conn(ctx, server) {
		t.Error("not caught")
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Errorf("read %q, %v, want the answer", got, err)
	}
	if <-results {
		t.Error("the silent connection was caught")
	}
}
