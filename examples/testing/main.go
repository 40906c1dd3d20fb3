// A program with tests that run on a test router: the example is main_test.go. The program
// makes a web server reachable from the internet, and prints its external endpoint.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f, err := forward.New(nil) // a test passes the Config of its router here
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }() // deletes the mapping
	if err := serve(ctx, f, func(at backends.Endpoint) { fmt.Println("reachable at", at) }); err != nil {
		log.Print(err)
	}
}

// serve serves until the context ends. It calls notify with each external endpoint that the
// router assigns.
func serve(ctx context.Context, f *forward.Forwarder, notify func(backends.Endpoint)) error {
	ln, err := f.Listen(ctx, "tcp", ":0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { follow(ctx, ln.Mapping(), notify) })
	err = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "hello from behind the router")
	}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow calls notify with each new external endpoint of the mapping until the context ends.
func follow(ctx context.Context, m *forward.Mapping, notify func(backends.Endpoint)) {
	for last := (backends.Endpoint{}); ctx.Err() == nil; {
		changed := m.Changed()
		if now := m.External(); now != last && now.Port() != 0 {
			last = now
			notify(now)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}
