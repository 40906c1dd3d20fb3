// Follows what becomes of a mapping, until Ctrl-C: before there is a network,
// when the router restarts and gives another port, when the provider gives it
// another address.
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
		case now != last && now.Port() != 0: // tell the peers, the tracker, the name server
			why := m.Status().Reason
			fmt.Printf("%v by %s: %s\n", now, m.Backend(), why)
			last = now
		case m.Err() != nil:
			fmt.Printf("%v\nnext try in %v\n", m.Err(), time.Until(m.Status().NextAttempt).Round(time.Second))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := m.Close(); err != nil {
				log.Fatal(err)
			}
			fmt.Println("taken away")
			return
		}
	}
}
