// The PCP client without a Forwarder: a mapping for one peer only, or for every peer if the
// server does not support filters. To renew and to delete the mapping, the client needs its
// nonce.
//
//	go run ./examples/pcpclient 192.168.1.1
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
	"github.com/natforward/goforward/backends/pcp"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: pcpclient GATEWAY")
	}
	gateway, err := netip.ParseAddrPort(os.Args[1])
	if err != nil {
		addr, err := netip.ParseAddr(os.Args[1])
		if err != nil {
			log.Fatal(err)
		}
		gateway = netip.AddrPortFrom(addr, pcp.Port)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client, err := pcp.NewClient(pcp.Config{Gateway: gateway, FirstWait: 250 * time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	request := pcp.MapRequest{Protocol: backends.UDP, InternalPort: 51820, Lifetime: time.Hour}
	request.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("198.51.100.7/32")}}
	m, err := client.Map(ctx, request)
	var refusal *pcp.ResultError
	if errors.As(err, &refusal) && refusal.Code == pcp.UnsupportedOption {
		fmt.Println("retrying without the filter:", err)
		request.Options.Filters = nil
		m, err = client.Map(ctx, request)
	}
	if err != nil {
		fmt.Println(err) // a refusal contains the time for which the server expects it to last
		return
	}
	fmt.Println(netip.AddrPortFrom(m.External, m.ExternalPort), "is mapped to local port", m.InternalPort, "for", m.Lifetime)

	request.Nonce = m.Nonce // every client with this nonce can renew and delete the mapping
	request.External, request.ExternalPort = m.External, m.ExternalPort
	renewed, err := client.Map(ctx, request)
	fmt.Println("renewed for", renewed.Lifetime, err)
	fmt.Println("deleted:", client.Unmap(ctx, m.Protocol, m.InternalPort, m.Nonce))
}
