package nat_test

import (
	"context"
	"fmt"
	"log"
	"time"

	nat "github.com/natforward/goforward/adapters/gonat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func ExampleNew() {
	router, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer router.Close()
	f, err := forward.New(router.Config()) // nil instead of a Config: the gateway of the default route
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	gateway := nat.New(f)
	defer gateway.Close()

	ctx := context.Background()
	port, err := gateway.AddPortMapping(ctx, "udp", 51820, "my tunnel", 2*time.Hour)
	if err != nil {
		log.Fatal(err)
	}
	addr, err := gateway.GetExternalAddress()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(gateway.Type(), addr, port)
	fmt.Println(gateway.DeletePortMapping(ctx, "udp", 51820), len(router.Table()))
	// Output:
	// NAT-PMP 45.45.45.1 51820
	// <nil> 0
}
