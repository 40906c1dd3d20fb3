package labtest

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// The client of those whose VPN hands out a port, with the hook of examples/vpnport:
// it starts after goforward, is told the port, and told another when the gateway has
// started anew and another host has the first. Each time a peer outside reaches it.
func TestTransmission(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "transmission: listens where a hook says, and a peer outside reaches it, also after the port changed")
	if _, err := exec.LookPath("curl"); err != nil {
		missing(t, "curl, for the hook")
	}
	home := lab.Home(t, lab.Router{NoUPnP: true})
	hook, err := filepath.Abs("../../../examples/vpnport/set-port.sh")
	if err != nil {
		t.Fatal(err)
	}
	c := goforward(t, home.Lan, "map", "51413", "--same-port", "--protocol", "both", "--gateway", home.Gateway.String(),
		"--lifetime", "60", "--hold", "--wait", "--exec", hook)
	if external := c.endpoint(); external != at(home, 51413) {
		t.Fatalf("granted %v", external)
	}
	tr := startTransmission(t, home.Lan, 6881)
	torrent := tr.share(t, bytes.Repeat([]byte("from behind the router\n"), 5000))
	tr.listens(t, 51413)
	greets(t, home, torrent, at(home, 51413))

	die(t, home)
	kept := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 udp dport 5351 drop`)
	home.Daemon.Start(t)
	neighbour(t, home, "tcp", 51413)
	kept.Remove(t)
	external := c.endpoint()
	if external.Port() == 51413 {
		t.Fatalf("granted %v, which another host has", external)
	}
	tr.listens(t, external.Port())
	greets(t, home, torrent, external)
	if _, err := greet(t, home, torrent, at(home, 51413)); err == nil {
		t.Error("a peer reaches Transmission by the port of another host")
	}
	wantRules(t, home, 3)
	c.Signal(os.Interrupt)
	c.exits(0)
	wantRules(t, home, 1)
}

// greets wants Transmission, and no other, to answer a peer outside, about that
// torrent.
func greets(t *testing.T, home *lab.HomeNet, torrent [sha1.Size]byte, external netip.AddrPort) {
	t.Helper()
	var id string
	until(t, patience, "no peer answers at "+external.String(), func() bool {
		var err error
		id, err = greet(t, home, torrent, external)
		return err == nil
	})
	if !strings.HasPrefix(id, "-TR") {
		t.Errorf("the peer at %v is %q", external, id)
	}
}

// greet is the handshake of BitTorrent (BEP 3) from outside, and returns who answers:
// in both directions a length, the protocol's name, eight reserved bytes, the torrent
// and the peer's name.
func greet(t *testing.T, home *lab.HomeNet, torrent [sha1.Size]byte, external netip.AddrPort) (id string, err error) {
	t.Helper()
	conn, err := home.Wan.Dial(t.Context(), "tcp", external.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	const protocol = "\x13BitTorrent protocol"
	if _, err := fmt.Fprintf(conn, "%s%s%s%s", protocol, make([]byte, 8), torrent[:], "-XX0000-abcdefghijkl"); err != nil {
		return "", err
	}
	answer := make([]byte, 68)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return "", err
	}
	if !bytes.HasPrefix(answer, []byte(protocol)) || !bytes.Equal(answer[28:48], torrent[:]) {
		return "", fmt.Errorf("the peer answers % x", answer)
	}
	return string(answer[48:]), nil
}
