// A UDP echo server that is reachable from the internet. If the program is killed, the
// mapping expires after five minutes.
package main

import (
	"context"
	"log"
	"time"

	"github.com/natforward/goforward/forward"
)

func main() {
	pc, err := forward.ListenPacket("udp", ":9000", forward.Lifetime(5*time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Println("reachable:", pc.Mapping().Wait(context.Background()) == nil, pc.External()) }()
	b := make([]byte, 1500)
	for n, from, err := pc.ReadFrom(b); err == nil; n, from, err = pc.ReadFrom(b) {
		_, _ = pc.WriteTo(b[:n], from)
	}
	log.Println("closed:", pc.Close())
}
