// The UPnP client by itself: what a device says of itself, its table, and an
// entry of our own.
//
//	go run ./examples/upnpclient http://192.168.1.1:5000/rootDesc.xml
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
	"github.com/natforward/goforward/backends/upnp"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("name the URL of a root description: goforward gateways --json tells it")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	device, err := upnp.Describe(ctx, os.Args[1], upnp.ClientConfig{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(device.FriendlyName, "at", device.Host)
	for _, service := range device.Services {
		fmt.Println("-", service.Kind(), service.Version())
		if service.Kind() == upnp.IPv6Firewall {
			continue
		}
		client, err := upnp.NewClient(service, upnp.ClientConfig{})
		if err != nil {
			log.Fatal(err)
		}
		use(ctx, client, device.Local)
	}
}

// use maps a port to this host, lists the table, and takes the mapping away.
func use(ctx context.Context, client *upnp.Client, here netip.Addr) {
	external, err := client.ExternalAddr(ctx)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("external address", external)
	m := upnp.PortMapping{
		Protocol: backends.TCP, ExternalPort: 8080, Internal: netip.AddrPortFrom(here, 80),
		Enabled: true, Description: "my server", Lease: time.Hour,
	}
	var fault *upnp.Fault
	switch err := client.AddPortMapping(ctx, m); {
	case errors.As(err, &fault) && fault.Code == upnp.ConflictInMappingEntry:
		fmt.Println("somebody else has the port")
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	for i := range 100 { // some devices never end
		e, err := client.PortMappingAt(ctx, i)
		if err != nil {
			break // most likely past the end: each device has its own code for that
		}
		fmt.Println(e.Protocol, e.ExternalPort, "→", e.Internal, e.Description)
	}
	fmt.Println("deleted:", client.DeletePortMapping(ctx, m.Key()))
}
