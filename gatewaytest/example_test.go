package gatewaytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// A server maps its port on the gateway, and a host on the internet connects to it.
func Example() {
	gw, err := gatewaytest.Start(gatewaytest.Config{}) // in a test: gatewaytest.New(t, …)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()

	// The code under test uses the gateway.
	ctx := context.Background()
	f, err := forward.New(gw.Config())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	m, err := f.Enable(ctx, forward.TCP(port), forward.External(8080))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("external endpoint:", m.External())

	// The test checks that the server is reachable from the internet.
	conn, err := gw.Dial(ctx, "tcp", m.External().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	fmt.Println("connected to", conn.RemoteAddr())

	// Without the mapping, the server is not reachable.
	_ = m.Close()
	_, err = gw.Dial(ctx, "tcp", "45.45.45.1:8080")
	fmt.Println("refused:", errors.Is(err, syscall.ECONNREFUSED))
	// Output:
	// external endpoint: 45.45.45.1:8080
	// connected to 45.45.45.1:8080
	// refused: true
}

func ExampleStart() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()

	// The code under test sends a request to gw.Addr(). This is that request.
	client, _ := net.Dial("udp4", gw.Addr().String())
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = client.Write([]byte{0, 2, 0, 0, 0x1f, 0x90, 0, 80, 0, 0, 0x1c, 0x20}) // NAT-PMP: TCP, internal port 8080, external port 80, 7200 s
	_, _ = client.Read(make([]byte, 16))

	for _, e := range gw.Table() {
		fmt.Println(e.Service, e.Protocol, e.External, "to", e.Internal)
	}
	gw.Advance(2 * time.Hour)
	fmt.Println("entries after two hours:", len(gw.Table()))
	// Output:
	// natpmp tcp 45.45.45.1:80 to 127.0.0.1:8080
	// entries after two hours: 0
}

func ExampleGateway_Dial() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	ln, _ := net.Listen("tcp4", "127.0.0.1:0")
	defer ln.Close()
	_ = gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP,
		Internal: ln.Addr().(*net.TCPAddr).AddrPort(),
		External: netip.MustParseAddrPort("45.45.45.1:8080"),
	})

	conn, err := gw.Dial(context.Background(), "tcp", "45.45.45.1:8080")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	server, _ := ln.Accept()
	_, _ = io.WriteString(server, "hello, internet")
	_ = server.Close()
	text, _ := io.ReadAll(conn)
	fmt.Printf("received from %s: %q\n", conn.RemoteAddr(), text)
	// Output: received from 45.45.45.1:8080: "hello, internet"
}

func ExampleGateway_Inject() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	// The next two NAT-PMP mapping requests fail with "out of resources". The third succeeds.
	remove := gw.Inject(gatewaytest.Fault{
		Match:  func(q gatewaytest.Request) bool { return q.Op == "map" },
		Times:  2,
		Result: 4,
	})
	defer remove()

	client, _ := net.Dial("udp4", gw.Addr().String())
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	response := make([]byte, 16)
	for range 3 {
		_, _ = client.Write([]byte{0, 2, 0, 0, 0x1f, 0x90, 0, 80, 0, 0, 0x1c, 0x20})
		_, _ = client.Read(response)
		fmt.Println("result code", response[3])
	}
	// Output:
	// result code 4
	// result code 4
	// result code 0
}

func Example_quirks() {
	gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		Version: 1,
		Leases:  quirks.Leases{PermanentOnly: 725},
	}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()

	// The code under test uses gw.SSDP() or gw.UPnP().DescriptionURL(). Here, the client
	// requests a lease of one hour.
	client, _ := net.Dial("tcp4", strings.Split(gw.UPnP().DescriptionURL(), "/")[2])
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	const body = `<Envelope><Body><AddPortMapping><NewRemoteHost/><NewExternalPort>80</NewExternalPort>` +
		`<NewProtocol>TCP</NewProtocol><NewInternalPort>8080</NewInternalPort><NewInternalClient>127.0.0.1</NewInternalClient>` +
		`<NewEnabled>1</NewEnabled><NewPortMappingDescription>demo</NewPortMappingDescription>` +
		`<NewLeaseDuration>3600</NewLeaseDuration></AddPortMapping></Body></Envelope>`
	fmt.Fprintf(client, "POST /ctl/0/WANIPConnection HTTP/1.1\r\nContent-Length: %d\r\n"+
		"SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\n\r\n%s", len(body), body)
	response, _ := io.ReadAll(client)
	fmt.Println("fault 725:", strings.Contains(string(response), "<errorCode>725</errorCode>"))
	fmt.Println("entries:", len(gw.Table()))
	// Output:
	// fault 725: true
	// entries: 0
}
