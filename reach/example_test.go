package reach_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/reach"
)

// A mapping that was granted is not always reachable: here, no program listens on the port. The
// prober of a test gateway stands for one that measures from the internet, such as reach.Path.
func Example() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	config := gw.Config()
	f, err := forward.New(config)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()

	ctx := context.Background()
	m, err := f.Enable(ctx, forward.TCP(48080))
	if err != nil {
		log.Fatal(err)
	}
	r, err := m.Verify(ctx, gw.Prober())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Verdict, "- the path is proven up to level", r.Proven)
	fmt.Println(r.Reason)
	// Output:
	// unreachable - the path is proven up to level internet
	// no program on this host listens on tcp port 48080; with a socket in its place, a connection from the internet arrived
}

// Verify does not need a mapping of this library. This measures a port that was forwarded in the
// router's settings.
func ExampleVerify() {
	r := reach.Verify(context.Background(), reach.Target{
		Protocol: backends.TCP,
		External: netip.MustParseAddrPort("45.45.45.1:48081"),
		Internal: netip.MustParseAddrPort("127.0.0.1:48081"),
		Gateway:  netip.MustParseAddr("127.0.0.1"),
	}, nil, reach.Hairpin())
	fmt.Println(r.Verdict)
	fmt.Println(r.Reason)
	// Output:
	// unreachable
	// no program on this host listens on tcp port 48081
}

// Listeners shows whether a program listens on a port, and on which addresses.
func ExampleListeners() {
	addrs, err := reach.Listeners(backends.TCP, 48082)
	if err != nil {
		log.Fatal(err) // errors.ErrUnsupported on some systems
	}
	fmt.Println(len(addrs), "programs listen")
	// Output: 0 programs listen
}
