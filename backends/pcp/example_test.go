package pcp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

// A client maps a port of this host and deletes the mapping with its nonce. The server
// is simulated.
func ExampleClient() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	client, err := pcp.NewClient(pcp.Config{Gateway: gw.Addr()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	ctx := context.Background()
	m, err := client.Map(ctx, pcp.MapRequest{
		Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 80, Lifetime: time.Hour,
		Options: pcp.Options{Description: "web server"},
	})
	var refusal *pcp.ResultError
	switch {
	case errors.As(err, &refusal):
		fmt.Println("the server refused:", refusal.Code)
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	fmt.Printf("%v:%d forwards to port %d for %v\n", m.External, m.ExternalPort, m.InternalPort, m.Lifetime)
	fmt.Println("deleted:", client.Unmap(ctx, backends.TCP, 8080, m.Nonce))
	// Output:
	// 45.45.45.1:80 forwards to port 8080 for 1h0m0s
	// deleted: <nil>
}

// A server refuses a request that it cannot parse.
func ExampleAppendErrorResponse() {
	request, err := pcp.MapRequest{
		Client: netip.MustParseAddr("192.168.1.10"), Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour,
	}.MarshalBinary()
	if err != nil {
		fmt.Println(err)
		return
	}
	request = append(request, 100, 0, 0, 0) // an unknown option that the server must process

	_, err = pcp.ParseMapRequest(request)
	fmt.Println(err)
	var invalid *pcp.RequestError
	if !errors.As(err, &invalid) {
		return // the server does not answer
	}
	response, err := pcp.AppendErrorResponse(nil, request, invalid.Code, 30*time.Minute, time.Hour)
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := pcp.ParseErrorResponse(response)
	fmt.Println(e.Opcode, e.Result, e.Lifetime, err)
	// Output:
	// pcp: unsupported option: option 100
	// map response unsupported option 30m0s <nil>
}
