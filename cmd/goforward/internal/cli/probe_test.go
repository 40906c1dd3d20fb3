package cli

import (
	"io"
	"net"
	"regexp"
	"testing"

	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/reach"
)

// TestProbeEcho checks which bytes probe sends, and that it recognizes the answer.
func TestProbeEcho(t *testing.T) {
	t.Parallel()
	nonce, want := reach.NewNonce(), reach.NewNonce()
	answer := []byte(dialback.Greeting + want)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	received := make(chan string, 8)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, len(dialback.Greeting)+dialback.NonceLength)
		if _, err := io.ReadFull(conn, b); err == nil {
			_, _ = conn.Write(answer)
		}
		rest, _ := io.ReadAll(conn)
		received <- string(b) + string(rest)
	}()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			received <- string(b[:n])
			_, _ = pc.WriteTo(answer, from)
		}
	}()
	for _, to := range []string{ln.Addr().String(), pc.LocalAddr().String() + "/udp"} {
		got := run(t, nil, "probe", to, "--nonce", nonce, "--want", want)
		if got.code != exitDone || !regexp.MustCompile(`^from 127\.0\.0\.1:\d+\nechoed\n$`).MatchString(got.stdout) {
			t.Fatalf("%s: exit code %d, %q, %s", to, got.code, got.stdout, got.stderr)
		}
		if text := <-received; text != "GFWD1 "+nonce {
			t.Errorf("%s: received %q", to, text)
		}
	}
	// Without --nonce, a UDP port gets a random one.
	got := run(t, nil, "probe", pc.LocalAddr().String()+"/udp")
	first := <-received
	if len(first) != len("GFWD1 "+nonce) || !dialback.IsNonce(first[len(dialback.Greeting):]) || first == "GFWD1 "+nonce {
		t.Errorf("received %q", first)
	}
	if got.code != exitDone || !regexp.MustCompile(`\nsent\n$`).MatchString(got.stdout) {
		t.Errorf("exit code %d, %q, %s", got.code, got.stdout, got.stderr)
	}
}
