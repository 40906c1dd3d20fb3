// Follows the changes of a mapping, until Ctrl-C. It works before there is a network, after
// the router restarts and assigns another port, and after the provider assigns another
// address.
//
//	go run ./examples/follow
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m, err := forward.Enable(forward.UDP(9000), forward.Background())
	if err != nil {
		log.Fatal(err)
	}
	var last backends.Endpoint
	for {
		changed := m.Changed() // before reading, so that no change is missed
		switch now := m.External(); {
		case now != last && now.Port() != 0: // here, notify the peers, the tracker, or the name server
			fmt.Printf("%v by %s: %s\n", now, m.Backend(), m.Status().Reason)
			last = now
		case m.Err() != nil:
			fmt.Printf("%v\nnext attempt in %v\n", m.Err(), time.Until(m.Status().NextAttempt).Round(time.Second))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := m.Close(); err != nil {
				log.Fatal(err)
			}
			fmt.Println("deleted")
			return
		}
	}
}
