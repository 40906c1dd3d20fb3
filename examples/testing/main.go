// A program that is tested on a router of the test's own: main_test.go is the
// example. It lets the internet at a web server, and tells where.
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
	f, err := forward.New(nil) // a test has a router to name here
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }() // takes the mapping away
	if err := serve(ctx, f, func(at backends.Endpoint) { fmt.Println("reachable at", at) }); err != nil {
		log.Print(err)
	}
}

// serve serves until the context ends, and tells of each external endpoint that
// the router gives.
func serve(ctx context.Context, f *forward.Forwarder, tell func(backends.Endpoint)) error {
	ln, err := f.Listen(ctx, "tcp", ":0")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { follow(ctx, ln.Mapping(), tell) })
	err = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, "hello from behind the router")
	}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func follow(ctx context.Context, m *forward.Mapping, tell func(backends.Endpoint)) {
	for last := (backends.Endpoint{}); ctx.Err() == nil; {
		changed := m.Changed()
		if now := m.External(); now != last && now.Port() != 0 {
			last = now
			tell(now)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}
