// A torrent client that is reachable from the internet, until Ctrl-C. It shares files and
// directories, prints a magnet link for each, and downloads the files of other links:
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
	dir := flag.String("dir", ".", "directory of the shared and the downloaded files")
	port := uint16(42069)
	flag.Func("port", "the preferred `port` (default 42069)", func(s string) error {
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
	_ = f.Close() // deletes the mapping
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// run shares and downloads until the context ends. The torrent engine announces the port on
// which it listens, and it reads its port and address only when it starts. Therefore run maps
// the port first, with the same internal and external port, and starts a new client if the
// external endpoint changes.
func run(ctx context.Context, f *forward.Forwarder, port uint16, config func() *torrent.ClientConfig, args []string, out io.Writer) error {
	specs, err := load(config().DataDir, args)
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

// load parses the arguments: files and directories to share, and links and .torrent files to
// download.
func load(dir string, args []string) ([]*torrent.TorrentSpec, error) {
	var specs []*torrent.TorrentSpec
	for _, arg := range args {
		spec, err := loadOne(dir, arg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", arg, err)
		}
		specs = append(specs, spec)
	}
	return specs, nil
}

func loadOne(dir, arg string) (*torrent.TorrentSpec, error) {
	switch {
	case strings.HasPrefix(arg, "magnet:"):
		return torrent.TorrentSpecFromMagnetUri(arg)
	case strings.HasSuffix(arg, ".torrent"):
		mi, err := metainfo.LoadFromFile(arg)
		if err != nil {
			return nil, err
		}
		return torrent.TorrentSpecFromMetaInfoErr(mi)
	}
	var info metainfo.Info // of a local file or directory
	if err := info.BuildFromFilePath(filepath.Join(dir, arg)); err != nil {
		return nil, err
	}
	b, err := bencode.Marshal(info)
	if err != nil {
		return nil, err
	}
	return torrent.TorrentSpecFromMetaInfoErr(&metainfo.MetaInfo{InfoBytes: b})
}

// serve runs a client on the current external endpoint until the endpoint changes or the
// context ends. It continues while the mapping is lost, because the router usually grants
// the same endpoint again.
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
		log.Println("mapped:", external)
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

// open opens a client on the mapped port. It retries for half a minute: the previous client
// keeps its sockets open after Close while it waits for uTP replies from peers that have
// left.
func open(ctx context.Context, external netip.AddrPort, config func() *torrent.ClientConfig) (*torrent.Client, error) {
	for tries := 0; ; tries++ {
		c := config()
		c.ListenPort = int(external.Port())
		c.PublicIp4 = external.Addr().AsSlice() // nil if the gateway does not report it
		c.NoDefaultPortForwarding = true        // the port is already mapped
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

// start downloads the missing pieces as soon as the metadata of the torrent is known. It
// prints a link that needs neither a tracker nor the DHT, because the link contains the
// endpoint of this client.
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
