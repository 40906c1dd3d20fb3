package backends_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

// The errors of all backends wrap the errors of this package. Here the backend is
// NAT-PMP, and the gateway is simulated.
func ExampleBackend() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	var b backends.Backend
	if b, err = natpmp.New(natpmp.Config{Gateway: gw.Addr()}); err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()

	ctx := context.Background()
	request := backends.Request{
		Protocol: backends.TCP,
		Internal: netip.AddrPortFrom(netip.Addr{}, 8080), // port 8080 of this host
		External: netip.AddrPortFrom(netip.Addr{}, 80),
		Lifetime: time.Hour,
	}
	m, err := b.Map(ctx, request)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m)
	fmt.Println("deleted:", b.Unmap(ctx, m))

	gw.Inject(gatewaytest.Fault{Result: int(natpmp.OutOfResources)})
	_, err = b.Map(ctx, request)
	fmt.Println("out of resources:", errors.Is(err, backends.ErrNoResources))
	// Output:
	// tcp 45.45.45.1:80 → 127.0.0.1:8080, natpmp, 1h0m0s
	// deleted: <nil>
	// out of resources: true
}

func ExampleEndpoint() {
	fmt.Println(backends.Endpoint{AddrPort: netip.MustParseAddrPort("45.45.45.1:8080")})
	fmt.Println(backends.Endpoint{AddrPort: netip.AddrPortFrom(netip.Addr{}, 8080)})
	fmt.Println(backends.Endpoint{})
	// Output:
	// 45.45.45.1:8080
	// :8080
	// not mapped
}

func ExampleScopeOf() {
	for _, addr := range []string{"45.45.45.1", "192.168.1.2", "100.64.0.1"} {
		fmt.Println(addr, backends.ScopeOf(netip.MustParseAddr(addr)))
	}
	// Output:
	// 45.45.45.1 public
	// 192.168.1.2 private
	// 100.64.0.1 shared
}
