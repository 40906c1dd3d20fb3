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

// This example starts a host behind a NAT, and prints the external address that it announces.
func Example() {
	gw, err := gatewaytest.Start(gatewaytest.Config{}) // a test gateway instead of a real one
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	f, err := forward.New(gw.Config()) // nil instead of a Config: the gateway of the default route
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

	// The first event contains the current addresses.
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
