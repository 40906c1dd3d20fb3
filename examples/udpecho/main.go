// A UDP echo that the internet reaches; killed, it leaves the way to it for minutes.
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
