// A torrent client that the internet reaches, until Ctrl-C. It shares files and
// directories, prints a magnet link for each, and gets what other links name:
//
//	torrent -dir ~/data film.iso
//	torrent -dir ~/data 'magnet:?xt=urn:btih:…&x.pe=45.45.45.1:42069'
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/natforward/goforward/forward"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir := flag.String("dir", ".", "where the data are, or go")
	port := uint16(42069)
	flag.Func("port", "the `port` to wish for (default 42069)", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		port = uint16(n)
		return err
	})
	flag.Parse()
	f, err := forward.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	config := func() *torrent.ClientConfig {
		c := torrent.NewDefaultClientConfig()
		c.DataDir, c.Seed = *dir, true
		return c
	}
	err = run(ctx, f, port, config, flag.Args(), os.Stdout)
	_ = f.Close() // takes the mapping away
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// run shares and gets until the context ends. The engine announces the port that it
// listens on, and reads its port and address only when it starts: so the mapping
// comes first, with one number inside and outside, and another endpoint takes
// another client.
func run(ctx context.Context, f *forward.Forwarder, port uint16, config func() *torrent.ClientConfig, what []string, out io.Writer) error {
	specs, err := load(config().DataDir, what)
	if err != nil {
		return err
	}
	m, err := f.Enable(ctx, forward.Both(port), forward.SamePort())
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := serve(ctx, m, config, specs, out); err != nil {
			return err
		}
	}
	return nil
}

// load makes out what to share and what to get.
func load(dir string, what []string) ([]*torrent.TorrentSpec, error) {
	var specs []*torrent.TorrentSpec
	for _, w := range what {
		spec, err := loadOne(dir, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w, err)
		}
		specs = append(specs, spec)
	}
	return specs, nil
}

func loadOne(dir, what string) (*torrent.TorrentSpec, error) {
	switch {
	case strings.HasPrefix(what, "magnet:"):
		return torrent.TorrentSpecFromMagnetUri(what)
	case strings.HasSuffix(what, ".torrent"):
		mi, err := metainfo.LoadFromFile(what)
		if err != nil {
			return nil, err
		}
		return torrent.TorrentSpecFromMetaInfoErr(mi)
	}
	var info metainfo.Info // of a file or directory that is there
	if err := info.BuildFromFilePath(filepath.Join(dir, what)); err != nil {
		return nil, err
	}
	b, err := bencode.Marshal(info)
	if err != nil {
		return nil, err
	}
	return torrent.TorrentSpecFromMetaInfoErr(&metainfo.MetaInfo{InfoBytes: b})
}

// serve runs a client on the endpoint that is granted now, until there is another
// or the context ends. While the mapping is lost it goes on: most often the same
// endpoint comes back.
func serve(ctx context.Context, m *forward.Mapping, config func() *torrent.ClientConfig, specs []*torrent.TorrentSpec, out io.Writer) error {
	changed, external := m.Changed(), m.External().AddrPort
	if external.Port() != 0 {
		client, err := open(ctx, external, config)
		if err != nil {
			return err
		}
		var starting sync.WaitGroup
		defer starting.Wait()
		defer client.Close()
		log.Println("forwarded:", external)
		for _, spec := range specs {
			t, _, err := client.AddTorrentSpec(spec)
			if err != nil {
				return err
			}
			starting.Go(func() { start(t, external, out) })
		}
	}
	for now := external; now == external || now.Port() == 0; {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			changed, now = m.Changed(), m.External().AddrPort
		}
	}
	return nil
}

// open opens a client on the port that the gateway forwards. The client before goes
// on closing its sockets after Close, for as long as peers that are gone owe it an
// answer by uTP: so it tries for half a minute.
func open(ctx context.Context, external netip.AddrPort, config func() *torrent.ClientConfig) (*torrent.Client, error) {
	for tries := 0; ; tries++ {
		c := config()
		c.ListenPort = int(external.Port())
		c.PublicIp4 = external.Addr().AsSlice() // nil where the gateway does not tell
		c.NoDefaultPortForwarding = true        // it is forwarded already
		client, err := torrent.NewClient(c)
		if err == nil || tries == 60 {
			return client, err
		}
		log.Println(err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second / 2):
		}
	}
}

// start gets what is missing, as soon as it is known what that is, and prints a link
// that needs neither a tracker nor the DHT: it names this client.
func start(t *torrent.Torrent, external netip.AddrPort, out io.Writer) {
	select {
	case <-t.Closed():
		return
	case <-t.GotInfo():
	}
	t.DownloadAll()
	mi := t.Metainfo()
	link, err := mi.MagnetV2()
	if err != nil {
		log.Println(err)
		return
	}
	link.Params = url.Values{"x.pe": {external.String()}}
	_, _ = fmt.Fprintln(out, link)
}
