// The NAT-PMP client without a Forwarder: one gateway, one request at a time, and no
// renewals.
//
//	go run ./examples/natpmpclient
//	go run ./examples/natpmpclient 192.168.1.1
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/discover"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client, err := natpmp.NewClient(natpmp.Config{Gateway: gateway()})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	addr, err := client.ExternalAddr(ctx)
	var version *natpmp.VersionError
	switch {
	case errors.As(err, &version):
		fmt.Println("the gateway supports protocol version", version.Version, "only: 2 is PCP")
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	fmt.Println("external address", addr.Addr, "of a gateway that has been up for", addr.Epoch)

	m, err := client.Map(ctx, natpmp.MapRequest{
		Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 80, Lifetime: time.Hour,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("external port", m.ExternalPort, "is mapped to local port", m.InternalPort, "for", m.Lifetime)
	fmt.Println("deleted:", client.Unmap(ctx, backends.TCP, 8080))
}

// gateway returns the gateway in the argument, or the default gateway.
func gateway() netip.AddrPort {
	if len(os.Args) < 2 {
		gw, err := discover.Default()
		if err != nil {
			log.Fatal(err)
		}
		return netip.AddrPortFrom(gw.Addr, natpmp.Port)
	}
	if addrPort, err := netip.ParseAddrPort(os.Args[1]); err == nil {
		return addrPort
	}
	addr, err := netip.ParseAddr(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	return netip.AddrPortFrom(addr, natpmp.Port)
}
