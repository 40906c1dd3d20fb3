package labtest

import (
	"bytes"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// TestTransmission checks the hook of examples/vpnport with Transmission, a client of VPN
// users whose provider assigns a port. Transmission starts after goforward, and the hook
// sets its port. Then the gateway restarts and grants another port, because another host
// has taken the first one. Each time, a peer outside reaches Transmission.
func TestTransmission(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "transmission: listens where a hook says, and a peer outside reaches it, also after the port changed")
	if _, err := exec.LookPath("curl"); err != nil {
		skipWithoutProgram(t, "curl, for the hook")
	}
	home := lab.Home(t, lab.Router{NoUPnP: true})
	hook, err := filepath.Abs("../../../examples/vpnport/set-port.sh")
	if err != nil {
		t.Fatal(err)
	}
	c := goforward(t, home.Lan, "map", "51413", "--same-port", "--protocol", "both", "--gateway", home.Gateway.String(),
		"--lifetime", "60", "--hold", "--wait", "--exec", hook)
	if external := c.readEndpoint(); external != externalAddr(home, 51413) {
		t.Fatalf("granted %v", external)
	}
	tr := startTransmission(t, home.Lan, 6881)
	torrent := tr.share(t, bytes.Repeat([]byte("from behind the router\n"), 5000))
	tr.waitForPort(t, 51413)
	wantPeer(t, home, torrent, externalAddr(home, 51413))

	powerOff(t, home)
	block := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 udp dport 5351 drop`)
	home.Daemon.Start(t)
	occupyPort(t, home, "tcp", 51413)
	block.Remove(t)
	external := c.readEndpoint()
	if external.Port() == 51413 {
		t.Fatalf("granted %v, which another host has", external)
	}
	tr.waitForPort(t, external.Port())
	wantPeer(t, home, torrent, external)
	if _, err := handshake(t, home, torrent, externalAddr(home, 51413)); err == nil {
		t.Error("a peer reaches Transmission by the port of another host")
	}
	wantRules(t, home, 3)
	c.Signal(os.Interrupt)
	c.wantExit(0)
	wantRules(t, home, 1)
}

// wantPeer checks that Transmission, and no other program, responds to a peer outside for
// that torrent.
func wantPeer(t *testing.T, home *lab.HomeNet, torrent [sha1.Size]byte, external netip.AddrPort) {
	t.Helper()
	var id string
	waitUntil(t, maxWait, "no peer responds at "+external.String(), func() bool {
		var err error
		id, err = handshake(t, home, torrent, external)
		return err == nil
	})
	if !strings.HasPrefix(id, "-TR") {
		t.Errorf("the peer at %v is %q", external, id)
	}
}

// handshake performs the BitTorrent handshake (BEP 3) from outside and returns the peer's
// name. In both directions it consists of a length, the name of the protocol, eight
// reserved bytes, the hash of the torrent and the name of the peer.
func handshake(t *testing.T, home *lab.HomeNet, torrent [sha1.Size]byte, external netip.AddrPort) (id string, err error) {
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
	reply := make([]byte, 68)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return "", err
	}
	if !bytes.HasPrefix(reply, []byte(protocol)) || !bytes.Equal(reply[28:48], torrent[:]) {
		return "", fmt.Errorf("the peer responds with % x", reply)
	}
	return string(reply[48:]), nil
}

// transmission is a running transmission-daemon.
type transmission struct {
	dir    string
	client *http.Client
	token  string // required in each request
}

// startTransmission starts the daemon in the host. It does not search for peers or map
// ports, and it listens on the port until another port is set.
func startTransmission(t *testing.T, host *lab.Host, port uint16) *transmission {
	t.Helper()
	program := unpackedProgram(t, "transmission", "transmission-daemon")
	dir := t.TempDir()
	settings, err := json.Marshal(map[string]any{
		"rpc-bind-address": "127.0.0.1", "rpc-port": 9091, "peer-port": port, "download-dir": dir,
		"port-forwarding-enabled": false, "dht-enabled": false, "lpd-enabled": false, "pex-enabled": false, "utp-enabled": false,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "settings.json"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	startProgram(t, host, nil, program, "--foreground", "--config-dir", dir)
	return &transmission{dir: dir, client: &http.Client{
		Transport: &http.Transport{DialContext: host.Dial, DisableKeepAlives: true}, Timeout: maxWait,
	}}
}

// call sends one request to the RPC interface. The first response contains the token.
func (tr *transmission) call(t *testing.T, method string, arguments, reply any) error {
	t.Helper()
	body, err := json.Marshal(map[string]any{"method": method, "arguments": arguments})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:9091/transmission/rpc", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		const header = "X-Transmission-Session-Id"
		req.Header.Set(header, tr.token)
		resp, err := tr.client.Do(req)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusConflict {
			tr.token = resp.Header.Get(header)
			continue
		}
		response := struct {
			Result    string
			Arguments any
		}{Arguments: reply}
		if err := json.Unmarshal(b, &response); err != nil {
			return fmt.Errorf("%s: %s: %w", resp.Status, b, err)
		}
		if response.Result != "success" {
			return fmt.Errorf("%s: %s", method, response.Result)
		}
		return nil
	}
	return fmt.Errorf("%s: the token is refused", method)
}

// share adds a torrent with one file that exists already, and returns its identifier: the
// hash of the bencoded info.
func (tr *transmission) share(t *testing.T, content []byte) [sha1.Size]byte {
	t.Helper()
	const name, pieceLength = "film", 1 << 15
	if err := os.WriteFile(filepath.Join(tr.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	var pieces []byte
	for rest := content; len(rest) > 0; {
		n := min(pieceLength, len(rest))
		sum := sha1.Sum(rest[:n])
		pieces, rest = append(pieces, sum[:]...), rest[n:]
	}
	info := fmt.Sprintf("d6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%se", len(content), len(name), name, pieceLength, len(pieces), pieces)
	metainfo := []byte("d4:info" + info + "e")
	waitUntil(t, maxWait, "Transmission does not accept the torrent", func() bool {
		return tr.call(t, "torrent-add", map[string]any{"metainfo": metainfo}, nil) == nil
	})
	return sha1.Sum([]byte(info))
}

// waitForPort waits until this port is set in Transmission.
func (tr *transmission) waitForPort(t *testing.T, port uint16) {
	t.Helper()
	var session struct {
		Port uint16 `json:"peer-port"`
	}
	waitUntil(t, maxWait, fmt.Sprintf("port %d is not set in Transmission", port), func() bool {
		return tr.call(t, "session-get", nil, &session) == nil && session.Port == port
	})
}
