// The UPnP client without a Forwarder: the description of a device, a new mapping, and the
// table of the device.
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
		log.Fatal("usage: upnpclient URL (of the root description; goforward gateways --json prints it)")
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
		mapPort(ctx, client, device.Local)
	}
}

// mapPort maps a port to this host, lists the table, and deletes the mapping.
func mapPort(ctx context.Context, client *upnp.Client, local netip.Addr) {
	external, err := client.ExternalAddr(ctx)
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("external address", external)
	m := upnp.PortMapping{
		Protocol: backends.TCP, ExternalPort: 8080, Internal: netip.AddrPortFrom(local, 80),
		Enabled: true, Description: "my server", Lease: time.Hour,
	}
	var fault *upnp.Fault
	switch err := client.AddPortMapping(ctx, m); {
	case errors.As(err, &fault) && fault.Code == upnp.ConflictInMappingEntry:
		fmt.Println("another host has mapped the port")
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	for i := range 100 { // the tables of some devices never end
		e, err := client.PortMappingAt(ctx, i)
		if err != nil {
			break // most likely the end of the table: devices use different codes for it
		}
		fmt.Println(e.Protocol, e.ExternalPort, "→", e.Internal, e.Description)
	}
	fmt.Println("deleted:", client.DeletePortMapping(ctx, m.Key()))
}
