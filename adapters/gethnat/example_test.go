package gethnat_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// This example passes a Forwarder to New. The Config of the Forwarder names a test router. It
// then makes the calls that p2p.Server makes, and connects as a peer on the internet.
func Example() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	f, err := forward.New(gw.Config())
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	nat := gethnat.New(f) // in a server: p2p.Config{NAT: gethnat.New(f)}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			_, _ = io.WriteString(conn, "hello from behind the router")
			_ = conn.Close()
		}
	}()
	internal := ln.Addr().(*net.TCPAddr).Port

	ip, err := nat.ExternalIP()
	if err != nil {
		log.Fatal(err)
	}
	external, err := nat.AddMapping("TCP", 30303, internal, "ethereum p2p", 10*time.Minute)
	if err != nil {
		log.Fatal(err)
	}
	defer nat.DeleteMapping("TCP", int(external), internal)
	fmt.Printf("enode://…@%v:%d\n", ip, external)

	// A peer on the internet connects:
	conn, err := gw.Dial(context.Background(), "tcp", fmt.Sprintf("%v:%d", ip, external))
	if err != nil {
		log.Fatal(err)
	}
	greeting, _ := io.ReadAll(conn)
	_ = conn.Close()
	fmt.Printf("%s\n", greeting)
	// Output:
	// enode://…@45.45.45.1:30303
	// hello from behind the router
}
