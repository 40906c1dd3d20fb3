package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

const (
	timeout       = 60 * time.Second // for every wait of a test
	preferredPort = 42069
	name          = "film.iso"
)

func TestMain(m *testing.M) { lab.Main(m) }

// isolatedConfig returns the configuration of a client that finds peers only by links and, if
// tracker is true, by a tracker.
func isolatedConfig(dir string, tracker bool) *torrent.ClientConfig {
	c := torrent.NewDefaultClientConfig()
	c.DataDir, c.Seed = dir, true
	c.NoDHT, c.DisableTrackers, c.DisablePEX, c.DisableIPv6 = true, !tracker, true, true
	return c
}

// example has the arguments of exampleProgram.
type example struct {
	Dir     string
	Args    []string
	Tracker bool
}

// exampleProgram runs the example as a process of the lab, and sends each link that the
// example prints.
var exampleProgram = lab.Func("example", func(p *lab.Proc) {
	var args example
	p.Args(&args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	f, err := forward.New(nil)
	if err != nil {
		p.Fatal(err)
	}
	err = run(ctx, f, preferredPort, func() *torrent.ClientConfig { return isolatedConfig(args.Dir, args.Tracker) }, args.Args, links{p})
	_ = f.Close()
	if err != nil {
		p.Fatal(err)
	}
})

// links is a writer that sends each line to the test.
type links struct{ *lab.Proc }

func (l links) Write(b []byte) (int, error) {
	l.Send(strings.TrimSpace(string(b)))
	return len(b), nil
}

// peerProgram is another client. It downloads the file of a link over one transport, and then
// ends.
var peerProgram = lab.Func("peer", func(p *lab.Proc) {
	var args download
	p.Args(&args)
	for start := time.Now(); time.Since(start) < timeout; {
		missing, err := args.try()
		if err != nil {
			p.Fatal(err)
		}
		if missing == 0 {
			p.Send("done")
			return
		}
		log.Printf("over %s: %d bytes are missing", args.Transport, missing)
	}
	p.Fatal("the download did not finish")
})

// download has the arguments of peerProgram.
type download struct{ Dir, Link, Transport string }

// try downloads the file with a new client, and returns the number of missing bytes. It waits
// for a part of the timeout: under load, a uTP connection of the engine sometimes transfers
// nothing more, and the engine does not close it. The next client continues the download.
func (d download) try() (missing int64, err error) {
	c := isolatedConfig(d.Dir, true) // uses the tracker in the link
	c.ListenPort, c.NoDefaultPortForwarding = 0, true
	c.DisableTCP, c.DisableUTP = d.Transport != "tcp", d.Transport != "utp"
	client, err := torrent.NewClient(c)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	t, err := client.AddMagnet(d.Link)
	if err != nil {
		return 0, err
	}
	info, complete := t.GotInfo(), t.Complete().On() // all pieces have the right hash
	for start := time.Now(); time.Since(start) < timeout/4; {
		select {
		case <-info:
			info = nil
			t.DownloadAll()
		case <-complete:
			return 0, nil
		case <-time.After(2 * time.Second):
			// The engine waits long before it connects again to a peer that did not reply at
			// once or that closed the connection.
			_, _ = client.AddMagnet(d.Link)
		}
	}
	return max(1, t.BytesMissing()), nil // without the metadata, the size is not known
}

// film writes a file with some megabytes of random content.
func film(t *testing.T) (dir string, content []byte) {
	t.Helper()
	dir, content = t.TempDir(), make([]byte, 3<<20+12345)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, content
}

// checkDownload checks that a peer on the internet downloads the file of the link.
func checkDownload(t *testing.T, home *lab.HomeNet, link, transport string, content []byte) {
	t.Helper()
	dir := t.TempDir()
	peer := home.Wan.Start(t, peerProgram, download{dir, link, transport})
	var message string
	peer.Expect(&message)
	peer.Wait()
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("over %s: got %d bytes, %v", transport, len(got), err)
	}
}

// endpoint returns the next link that the example prints, and the endpoint in the link.
func endpoint(t *testing.T, example *lab.Running) (link, external string) {
	t.Helper()
	example.Expect(&link)
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return link, u.Query().Get("x.pe")
}

// checkEnd interrupts the example, and checks that it ends and leaves no mapping on the
// router. others is the number of mappings of other hosts.
func checkEnd(t *testing.T, home *lab.HomeNet, example *lab.Running, others int) {
	t.Helper()
	example.Signal(os.Interrupt)
	example.Wait()
	if rules := home.Rules(t); len(rules) != others {
		t.Errorf("the router has %d entries, want %d:\n%s", len(rules), others, strings.Join(rules, "\n"))
	}
}

// neighbour adds another host to the home network. The host maps a port of the router to a
// server of its own.
func neighbour(t *testing.T, home *lab.HomeNet, port int) {
	t.Helper()
	host := home.Join("neighbour", "192.168.77.3/24")
	mapped := "Mapped public port " + strconv.Itoa(port) + " "
	for start := time.Now(); ; {
		out, _ := host.Run(t.Context(), "natpmpc", "-g", home.Gateway.String(), "-a", strconv.Itoa(port), "80", "tcp", "600")
		if strings.Contains(out, mapped) {
			return
		}
		if time.Since(start) > timeout {
			t.Fatalf("natpmpc: %s", out)
		}
	}
}

func TestShare(t *testing.T) {
	lab.Scenario(t, "torrent: a peer outside gets a shared file, by TCP and by uTP")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, Args: []string{name}})
	link, external := endpoint(t, example)
	if external != "45.45.45.1:42069" {
		t.Errorf("reachable at %s", external)
	}
	checkDownload(t, home, link, "tcp", content)
	checkDownload(t, home, link, "utp", content)
	checkEnd(t, home, example, 0)
}

func TestShareTaken(t *testing.T) {
	lab.Scenario(t, "torrent: the port is taken, and the engine listens on the one that is granted")
	home := lab.Home(t, lab.Router{})
	neighbour(t, home, preferredPort)
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, Args: []string{name}})
	link, external := endpoint(t, example)
	if external == "" || external == "45.45.45.1:42069" {
		t.Errorf("reachable at %q, want another port than the neighbour's", external)
	}
	checkDownload(t, home, link, "tcp", content)
	checkDownload(t, home, link, "utp", content)
	checkEnd(t, home, example, 1)
}

// TestShareChanged restarts the router. Another host maps the port before the example can
// request it again.
func TestShareChanged(t *testing.T) {
	lab.Scenario(t, "torrent: the router restarts and hands out another port, and peers get the file there")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, Args: []string{name}})
	_, before := endpoint(t, example)
	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	blocked := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 drop`)
	home.Daemon.Start(t)
	neighbour(t, home, preferredPort)
	blocked.Remove(t)
	link, external := endpoint(t, example)
	if external == "" || external == before {
		t.Errorf("reachable at %q, after %q", external, before)
	}
	checkDownload(t, home, link, "tcp", content)
	checkDownload(t, home, link, "utp", content)
	checkEnd(t, home, example, 1)
}

// TestShareAddress changes the external address. The next client of the example listens on the
// same port as the previous client.
func TestShareAddress(t *testing.T) {
	lab.Scenario(t, "torrent: another external address, and peers get the file there")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, Args: []string{name}})
	link, _ := endpoint(t, example)
	checkDownload(t, home, link, "tcp", content)
	home.Router.Exec(t, "sh", "-ec", "sysctl -qw net.ipv4.conf.wan0.promote_secondaries=1; ip addr add 45.45.45.77/24 dev wan0; ip addr del 45.45.45.1/24 dev wan0")
	link, external := endpoint(t, example)
	if external != "45.45.45.77:42069" {
		t.Errorf("reachable at %q", external)
	}
	checkDownload(t, home, link, "tcp", content)
	checkDownload(t, home, link, "utp", content)
	checkEnd(t, home, example, 0)
}

// TestLoad checks that the arguments are parsed, and that an invalid argument fails before any
// request to the gateway.
func TestLoad(t *testing.T) {
	t.Parallel()
	dir, _ := film(t)
	specs, err := load(dir, []string{name, "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&x.pe=45.45.45.1:42069"})
	if err != nil || len(specs) != 2 {
		t.Fatalf("%v, %v", specs, err)
	}
	if len(specs[0].InfoBytes) == 0 || specs[0].DisplayName != name {
		t.Errorf("%+v", specs[0])
	}
	if got := specs[1]; got.InfoHash.HexString() != "0123456789abcdef0123456789abcdef01234567" || len(got.PeerAddrs) != 1 {
		t.Errorf("%+v", got)
	}
	for _, arg := range []string{"missing", "missing.torrent", "magnet:?xt=urn:btih:short"} {
		if _, err := load(dir, []string{arg}); err == nil {
			t.Errorf("%q is accepted", arg)
		}
	}
	if err := run(t.Context(), nil, 0, func() *torrent.ClientConfig { return isolatedConfig(dir, false) }, []string{"missing"}, io.Discard); err == nil {
		t.Error("run accepts a file that does not exist")
	}
}
