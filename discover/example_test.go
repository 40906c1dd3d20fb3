package discover_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"

	"github.com/natforward/goforward/discover"
)

// The gateway of this host, and the local address for a port mapping. The output differs
// between hosts.
func ExampleDefault() {
	gw, err := discover.Default()
	if errors.Is(err, discover.ErrNoRoute) {
		fmt.Println("offline:", err)
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("gateway", gw.Addr, "through", gw.Interface, "from", gw.Local)
}

// A destination on this host has no gateway.
func ExampleRoute() {
	_, err := discover.Route(netip.MustParseAddr("127.0.0.1"))
	fmt.Println(errors.Is(err, discover.ErrNoRoute))
	fmt.Println(err)
	// Output:
	// true
	// discover: no route to 127.0.0.1: it is this host
}

// Watch calls notify after every change. notify reads the state again.
func ExampleWatch() {
	err := discover.Watch(context.Background(), func() {
		gw, err := discover.Default()
		fmt.Println("the gateway is", gw.Addr, err)
	})
	log.Fatal(err)
}
