package natpmp_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

// A client maps a port of this host and deletes the mapping. The gateway is simulated.
func ExampleClient() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	client, err := natpmp.NewClient(natpmp.Config{Gateway: gw.Addr()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	ctx := context.Background()
	external, err := client.ExternalAddr(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := client.Map(ctx, natpmp.MapRequest{
		Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 80, Lifetime: time.Hour,
	})
	var refusal *natpmp.ResultError
	switch {
	case errors.As(err, &refusal):
		fmt.Println("the gateway refused:", refusal.Code)
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	fmt.Printf("%v:%d forwards to port %d for %v\n", external.Addr, m.ExternalPort, m.InternalPort, m.Lifetime)
	fmt.Println("deleted:", client.Unmap(ctx, backends.TCP, 8080))
	// Output:
	// 45.45.45.1:80 forwards to port 8080 for 1h0m0s
	// deleted: <nil>
}

// A server parses a request and appends the response.
func ExampleParseMapRequest() {
	datagram := []byte{0, 2, 0, 0, 0x1f, 0x90, 0, 80, 0, 0, 0x1c, 0x20}
	r, err := natpmp.ParseMapRequest(datagram)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Protocol, r.InternalPort, r.ExternalPort, r.Lifetime)
	response, err := natpmp.MapResponse{
		Protocol: r.Protocol, Epoch: time.Minute,
		InternalPort: r.InternalPort, ExternalPort: r.ExternalPort, Lifetime: r.Lifetime,
	}.MarshalBinary()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("% x\n", response)
	// Output:
	// tcp 8080 80 2h0m0s
	// 00 82 00 00 00 00 00 3c 1f 90 00 50 00 00 1c 20
}
