package upnp_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
)

// The client maps a port with one device. A device refuses a request with a fault: this one
// does not map ports for another host.
func ExampleClient() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()

	ctx := context.Background()
	device, err := upnp.Describe(ctx, gw.UPnP().DescriptionURL(), upnp.ClientConfig{})
	if err != nil {
		log.Fatal(err)
	}
	for _, service := range device.Services {
		if service.Kind() != upnp.IPConnection {
			continue
		}
		client, err := upnp.NewClient(service, upnp.ClientConfig{})
		if err != nil {
			log.Fatal(err)
		}
		mapping := upnp.PortMapping{
			Protocol: backends.TCP, ExternalPort: 8080, Internal: netip.AddrPortFrom(device.Local, 80),
			Enabled: true, Description: "my server", Lease: time.Hour,
		}
		fmt.Println(client.AddPortMapping(ctx, mapping))
		fmt.Println(client.ExternalAddr(ctx))

		mapping.Internal = netip.MustParseAddrPort("127.0.0.9:80")
		err = client.AddPortMapping(ctx, mapping)
		var fault *upnp.Fault
		if errors.As(err, &fault) {
			fmt.Println(int(fault.Code), errors.Is(err, backends.ErrNotAuthorized))
		}
		fmt.Println(client.DeletePortMapping(ctx, mapping.Key()))
	}
	// Output:
	// <nil>
	// 45.45.45.1 <nil>
	// 606 true
	// <nil>
}
