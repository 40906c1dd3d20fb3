package lab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// sendAndCollect sends datagrams to a new socket of the router and returns the datagrams
// that arrive, in their order.
func sendAndCollect(t *testing.T, home *lab.HomeNet, from *lab.Host, send ...string) (got []string) {
	t.Helper()
	pc, err := home.Router.ListenPacket("udp", home.Gateway.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	conn, err := from.Dial(t.Context(), "udp", home.Gateway.String()+":"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, s := range send {
		if _, err := conn.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2000)
	for _ = pc.SetReadDeadline(time.Now().Add(time.Second)); ; {
		n, _, err := pc.ReadFrom(buf)
		if err != nil {
			return got
		}
		got = append(got, string(buf[:n]))
	}
}

func TestCable(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: a cable loses, doubles, delays and reorders")
	home := lab.Home(t, lab.Router{})
	host, cable := home.JoinByCable("wired", "192.168.77.3/24")

	// The kernel sends large segments without splitting them, and leaves checksums to the
	// hardware.
	outside := home.Wan.Echo(t, "tcp", ":7")
	big := strings.Repeat("all the bytes there are ", 20_000)
	reply, err := host.SendTCP(t, outside.Addr, big)
	if err != nil || !strings.HasSuffix(reply, big) {
		t.Fatalf("%d of %d bytes were returned: %v", len(reply), len(big), err)
	}

	for _, c := range []struct {
		name string
		line lab.Line
		want string
	}{
		{"good", lab.Line{}, "a b"},
		{"lossy", lab.Line{Loss: 1}, ""},
		{"doubling", lab.Line{Duplicate: 1}, "a a b b"},
		{"slow", lab.Line{Delay: 100 * time.Millisecond}, "a b"},
	} {
		cable.Set(c.line)
		begin := time.Now()
		var got []string
		if c.name == "slow" { // timers that expire together fire in any order
			for _, s := range []string{"a", "b"} {
				got = append(got, sendAndCollect(t, home, host, s)...)
			}
		} else {
			got = sendAndCollect(t, home, host, "a", "b")
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q arrived, want %q", c.name, got, c.want)
		}
		if took := time.Since(begin); took < c.line.Delay {
			t.Errorf("%s: the frames took %v, less than the delay", c.name, took)
		}
	}

	// The seed selects which of the four frames are reordered. If the test process pauses
	// between two frames for as long as the delay, they still arrive in order. So the
	// test makes several attempts.
	for tries := 1; ; tries++ {
		cable.Set(lab.Line{Reorder: 0.5, Seed: 1, Peer: home.Gateway}) // with Peer, ARP uses no random numbers
		got := sendAndCollect(t, home, host, "a", "b", "c", "d")
		if len(got) == 4 && strings.Join(got, " ") != "a b c d" {
			break
		}
		if tries == 5 {
			t.Errorf("the frames arrived in order or incomplete: %q", got)
			break
		}
	}

	testOneInThree(t, home, host, cable)
}

// testOneInThree checks that exactly one of every three frames is lost, and that the same
// seed selects the same frames. Frames that are not exchanged with the peer pass.
func testOneInThree(t *testing.T, home *lab.HomeNet, host *lab.Host, cable *lab.Cable) {
	t.Helper()
	const n = 60
	var send []string
	for i := range n {
		send = append(send, string(rune('A'+i)))
	}
	received := func(seed uint64, peer netip.Addr) string {
		cable.Set(lab.Line{OneIn: 3, Seed: seed, Peer: peer})
		return strings.Join(sendAndCollect(t, home, host, send...), "")
	}
	first := received(1, home.Gateway)
	for i := range n / 3 {
		lost := 0
		for _, s := range send[3*i : 3*i+3] {
			if !strings.Contains(first, s) {
				lost++
			}
		}
		if lost != 1 {
			t.Errorf("%d of three frames are lost: %q arrived", lost, first)
		}
	}
	if fromHost, toHost := cable.Lost(); fromHost != n/3 || toHost != 0 {
		t.Errorf("%d and %d frames were lost, want %d and none", fromHost, toHost, n/3)
	}
	if again := received(1, home.Gateway); again != first {
		t.Errorf("with the same seed, %q arrived, and then %q", first, again)
	}
	if other := received(2, home.Gateway); other == first {
		t.Errorf("with two different seeds, %q arrived", first)
	}
	if got := received(1, home.Wan.Addr()); len(got) != len(strings.Join(send, "")) {
		t.Errorf("of frames between other hosts, %q arrived", got)
	}
}

func TestCableCut(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: a cable is cut after a frame and plugged in again")
	home := lab.Home(t, lab.Router{})
	host, cable := home.JoinByCable("wired", "192.168.77.3/24")
	echo := host.Echo(t, "udp", ":80")
	if got := sendAndCollect(t, home, host, "first", "second"); len(got) != 2 { // completes ARP
		t.Fatalf("%q", got)
	}
	cable.CutAfter(2)
	if got := strings.Join(sendAndCollect(t, home, host, "a", "b", "c", "d"), " "); got != "a b" {
		t.Errorf("%q passed, want two datagrams", got)
	}
	select {
	case <-cable.Severed():
	default:
		t.Error("no frame was lost to the cut")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	// No server listens there, so a packet that passed the cut would be refused.
	if _, err := home.Router.Dial(ctx, "tcp", "192.168.77.3:80"); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a frame to the host passes the cut: %v", err)
	}
	if n := cable.Plug(); n != 2 {
		t.Errorf("%d frames have passed, want 2", n)
	}
	if _, err := home.Router.Reach(echo, echo.Addr); err != nil {
		t.Error(err)
	}
	cable.CutAfter(10)
	if cable.IsSevered() {
		t.Error("the cable is severed before a frame was lost")
	}
}
