package libp2pnat_test

import (
	"fmt"
	"log"
	"strings"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"

	"github.com/natforward/goforward/adapters/libp2pnat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// A host behind a NAT, and the address that it tells other peers.
func Example() {
	gw, err := gatewaytest.Start(gatewaytest.Config{}) // a program of yours has a real one
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	f, err := forward.New(gw.Config()) // nil: with the gateway that leads to the internet
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()

	host, err := libp2p.New(
		libp2p.NATManager(libp2pnat.New(f)),
		libp2p.ListenAddrStrings("/ip4/0.0.0.0/tcp/24001"),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()

	// The first of these events tells what there is already.
	addrs, err := host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		log.Fatal(err)
	}
	defer addrs.Close()
	for range addrs.Out() {
		for _, a := range host.Addrs() {
			if strings.HasPrefix(a.String(), "/ip4/45.45.45.1/") {
				fmt.Println(a)
				return
			}
		}
	}
	// Output: /ip4/45.45.45.1/tcp/24001
}
