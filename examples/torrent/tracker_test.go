package main

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"

	"github.com/natforward/goforward/internal/lab"
)

// tracker responds to every request with the peer that announced itself first: with the source
// address of the request, and the announced port (BEP 3, BEP 23).
type tracker struct {
	once      sync.Once
	announced chan struct{} // closed when peer and ip are set
	peer      netip.AddrPort
	ip        string // the address in the announcement (BEP 3)
}

// startTracker starts a tracker on the internet, and returns its announce URL.
func startTracker(t *testing.T, home *lab.HomeNet) (tr *tracker, announce string) {
	t.Helper()
	ln, err := home.Wan.Listen("tcp", "45.45.45.2:6969")
	if err != nil {
		t.Fatal(err)
	}
	tr = &tracker{announced: make(chan struct{})}
	server := &http.Server{Handler: tr}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	return tr, "http://45.45.45.2:6969/announce"
}

func (tr *tracker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	port, err := strconv.ParseUint(query.Get("port"), 10, 16)
	if err != nil {
		http.Error(w, "no port", http.StatusBadRequest)
		return
	}
	tr.once.Do(func() {
		tr.peer, tr.ip = netip.AddrPortFrom(from.Addr().Unmap(), uint16(port)), query.Get("ip")
		close(tr.announced)
	})
	<-tr.announced
	peer := binary.BigEndian.AppendUint16(tr.peer.Addr().AsSlice(), tr.peer.Port())
	fmt.Fprintf(w, "d8:intervali60e5:peers6:%se", peer)
}

// writeMetainfo writes a .torrent file that contains the tracker.
func writeMetainfo(t *testing.T, dir, announce string) (path string) {
	t.Helper()
	var info metainfo.Info
	if err := info.BuildFromFilePath(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	b, err := bencode.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "film.torrent")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (&metainfo.MetaInfo{Announce: announce, InfoBytes: b}).Write(f); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestShareTracker checks that the engine announces the mapped port, and that a peer that has
// only the tracker downloads the file.
func TestShareTracker(t *testing.T) {
	lab.Scenario(t, "torrent: the granted port is announced to a tracker, and a peer that asks it gets the file")
	home := lab.Home(t, lab.Router{})
	neighbour(t, home, preferredPort)
	tr, announce := startTracker(t, home)
	dir, content := film(t)
	example := home.Lan.Start(t, exampleProgram, example{Dir: dir, Args: []string{writeMetainfo(t, dir, announce)}, Tracker: true})
	link, external := endpoint(t, example)
	select {
	case <-tr.announced:
	case <-time.After(timeout):
		t.Fatal("no announcement within 60 s")
	}
	if tr.peer.String() != external || tr.ip != tr.peer.Addr().String() {
		t.Errorf("announced as %v with the address %q, reachable at %v", tr.peer, tr.ip, external)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	checkDownload(t, home, "magnet:?xt="+query.Get("xt")+"&tr="+url.QueryEscape(query.Get("tr")), "tcp", content)
	checkEnd(t, home, example, 1)
}
