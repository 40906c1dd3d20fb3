package gatewaytest_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

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
	fmt.Println(len(gw.Table()), "left")
	// Output:
	// natpmp tcp 45.45.45.1:80 to 127.0.0.1:8080
	// 0 left
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
	inside, _ := ln.Accept()
	_, _ = io.WriteString(inside, "hello, internet")
	_ = inside.Close()
	text, _ := io.ReadAll(conn)
	fmt.Printf("%s says %q\n", conn.RemoteAddr(), text)
	// Output: 45.45.45.1:8080 says "hello, internet"
}

func ExampleGateway_Inject() {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer gw.Close()
	// The next two mapping requests fail with "out of resources"; the one after them
	// succeeds.
	remove := gw.Inject(gatewaytest.Fault{
		Match:  func(q gatewaytest.Request) bool { return q.Op == "map" },
		Times:  2,
		Result: 4,
	})
	defer remove()
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
	answer, _ := io.ReadAll(client)
	fmt.Println(strings.Contains(string(answer), "<errorCode>725</errorCode>"), len(gw.Table()))
	// Output:
	// true 0
}
