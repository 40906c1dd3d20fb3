package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
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
	patience = 60 * time.Second // bounds what must happen
	wish     = 42069
	name     = "film.iso"
)

func TestMain(m *testing.M) { lab.Main(m) }

// quiet is a client that finds nobody but those that it, or a tracker, is told of.
func quiet(dir string, tracker bool) *torrent.ClientConfig {
	c := torrent.NewDefaultClientConfig()
	c.DataDir, c.Seed = dir, true
	c.NoDHT, c.DisableTrackers, c.DisablePEX, c.DisableIPv6 = true, !tracker, true, true
	return c
}

// example is how exampleProgram is started.
type example struct {
	Dir     string
	What    []string
	Tracker bool
}

// exampleProgram is the example, which sends each link that it prints.
var exampleProgram = lab.Func("example", func(p *lab.Proc) {
	var args example
	p.Args(&args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	f, err := forward.New(nil)
	if err != nil {
		p.Fatal(err)
	}
	err = run(ctx, f, wish, func() *torrent.ClientConfig { return quiet(args.Dir, args.Tracker) }, args.What, links{p})
	_ = f.Close()
	if err != nil {
		p.Fatal(err)
	}
})

type links struct{ *lab.Proc }

func (l links) Write(b []byte) (int, error) {
	l.Send(strings.TrimSpace(string(b)))
	return len(b), nil
}

// peerProgram is another client, which gets what a link names by one transport and
// then ends.
var peerProgram = lab.Func("peer", func(p *lab.Proc) {
	var args struct{ Dir, Link, Transport string }
	p.Args(&args)
	c := quiet(args.Dir, true) // asks those that the link names
	c.ListenPort, c.NoDefaultPortForwarding = 0, true
	c.DisableTCP, c.DisableUTP = args.Transport != "tcp", args.Transport != "utp"
	client, err := torrent.NewClient(c)
	if err != nil {
		p.Fatal(err)
	}
	defer client.Close()
	t, err := client.AddMagnet(args.Link)
	if err != nil {
		p.Fatal(err)
	}
	// An engine is slow to dial again if a peer did not answer at once, or hung up.
	dialUntil := func(done <-chan struct{}) bool {
		for begin := time.Now(); time.Since(begin) < patience/2; {
			select {
			case <-done:
				return true
			case <-time.After(2 * time.Second):
				_, _ = client.AddMagnet(args.Link)
			}
		}
		return false
	}
	if !dialUntil(t.GotInfo()) {
		p.Fatal("no peer tells what the link names")
	}
	t.DownloadAll()
	if !dialUntil(t.Complete().On()) { // each piece has the right hash
		p.Fatalf("%d bytes are missing", t.BytesMissing())
	}
	p.Send("done")
})

// film writes some megabytes that nobody can guess.
func film(t *testing.T) (dir string, content []byte) {
	t.Helper()
	dir, content = t.TempDir(), make([]byte, 3<<20+12345)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, content
}

// fetches wants a peer outside to get the film by the link, which names an endpoint.
func fetches(t *testing.T, home *lab.HomeNet, link, transport string, content []byte) {
	t.Helper()
	dir := t.TempDir()
	peer := home.Wan.Start(t, peerProgram, map[string]string{"Dir": dir, "Link": link, "Transport": transport})
	var said string
	peer.Expect(&said)
	peer.Wait()
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("by %s: got %d bytes, %v", transport, len(got), err)
	}
}

// endpoint is the one that the next link names.
func endpoint(t *testing.T, example *lab.Running) (link, external string) {
	t.Helper()
	example.Expect(&link)
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return link, u.Query().Get("x.pe")
}

// ends wants the example to end well, and to leave nothing at the router.
func ends(t *testing.T, home *lab.HomeNet, example *lab.Running, others int) {
	t.Helper()
	example.Signal(os.Interrupt)
	example.Wait()
	if rules := home.Rules(t); len(rules) != others {
		t.Errorf("the router has %d entries, want %d:\n%s", len(rules), others, strings.Join(rules, "\n"))
	}
}

// neighbour is another host of the home, which has mapped a port of the router to a
// server of its own.
func neighbour(t *testing.T, home *lab.HomeNet, port int) {
	t.Helper()
	host := home.Join("neighbour", "192.168.77.3/24")
	mapped := "Mapped public port " + strconv.Itoa(port) + " "
	for begin := time.Now(); ; {
		out, _ := host.Run(t.Context(), "natpmpc", "-g", home.Gateway.String(), "-a", strconv.Itoa(port), "80", "tcp", "600")
		if strings.Contains(out, mapped) {
			return
		}
		if time.Since(begin) > patience {
			t.Fatalf("natpmpc: %s", out)
		}
	}
}

func TestShare(t *testing.T) {
	lab.Scenario(t, "torrent: a peer outside gets a shared file, by TCP and by uTP")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, What: []string{name}})
	link, external := endpoint(t, example)
	if external != "45.45.45.1:42069" {
		t.Errorf("reachable at %s", external)
	}
	fetches(t, home, link, "tcp", content)
	fetches(t, home, link, "utp", content)
	ends(t, home, example, 0)
}

func TestShareTaken(t *testing.T) {
	lab.Scenario(t, "torrent: the port is taken, and the engine listens on the one that is granted")
	home := lab.Home(t, lab.Router{})
	neighbour(t, home, wish)
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, What: []string{name}})
	link, external := endpoint(t, example)
	if external == "" || external == "45.45.45.1:42069" {
		t.Errorf("reachable at %q, which is another host", external)
	}
	fetches(t, home, link, "tcp", content)
	fetches(t, home, link, "utp", content)
	ends(t, home, example, 1)
}

// The router starts anew, and somebody else has the port before it is asked for again.
func TestShareChanged(t *testing.T) {
	lab.Scenario(t, "torrent: the router restarts and hands out another port, and peers get the file there")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, What: []string{name}})
	_, before := endpoint(t, example)
	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	kept := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 drop`)
	home.Daemon.Start(t)
	neighbour(t, home, wish)
	kept.Remove(t)
	link, external := endpoint(t, example)
	if external == "" || external == before {
		t.Errorf("reachable at %q, after %q", external, before)
	}
	fetches(t, home, link, "tcp", content)
	fetches(t, home, link, "utp", content)
	ends(t, home, example, 1)
}

// The provider hands out another address: the next client listens on the port of
// the one before.
func TestShareAddress(t *testing.T) {
	lab.Scenario(t, "torrent: another external address, and peers get the file there")
	home := lab.Home(t, lab.Router{})
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, What: []string{name}})
	link, _ := endpoint(t, example)
	fetches(t, home, link, "tcp", content)
	home.Router.Exec(t, "sh", "-ec", "sysctl -qw net.ipv4.conf.wan0.promote_secondaries=1; ip addr add 45.45.45.77/24 dev wan0; ip addr del 45.45.45.1/24 dev wan0")
	link, external := endpoint(t, example)
	if external != "45.45.45.77:42069" {
		t.Errorf("reachable at %q", external)
	}
	fetches(t, home, link, "tcp", content)
	fetches(t, home, link, "utp", content)
	ends(t, home, example, 0)
}

// What is to be shared and got is made out before anything is asked of the gateway.
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
	for _, what := range []string{"missing", "missing.torrent", "magnet:?xt=urn:btih:short"} {
		if _, err := load(dir, []string{what}); err == nil {
			t.Errorf("%q is accepted", what)
		}
	}
	if err := run(t.Context(), nil, 0, func() *torrent.ClientConfig { return quiet(dir, false) }, []string{"missing"}, io.Discard); err == nil {
		t.Error("the example runs without its file")
	}
}
