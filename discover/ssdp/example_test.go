package ssdp_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/discover/ssdp"
)

// A search for all root devices. Its only destination is a device on loopback, so that the
// example needs no network; a search without To sends to the multicast group.
func ExampleSearch_Responses() {
	device, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = device.Close() }()
	go func() {
		_, from, err := device.ReadFromUDPAddrPort(make([]byte, 1024))
		if err != nil {
			return
		}
		_, _ = device.WriteToUDPAddrPort([]byte("HTTP/1.1 200 OK\r\n"+
			"LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n"+
			"ST: upnp:rootdevice\r\n"+
			"USN: uuid:9a1b::upnp:rootdevice\r\n\r\n"), from)
	}()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	search := ssdp.Search{
		Targets: []string{"upnp:rootdevice"},
		To:      []netip.AddrPort{device.LocalAddr().(*net.UDPAddr).AddrPort()},
	}
	for response, err := range search.Responses(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(response.UDN(), "at", response.Location)
		break // closes the sockets
	}
	// Output: uuid:9a1b at http://192.168.1.1:5000/rootDesc.xml
}

func ExampleParseNotification() {
	n, err := ssdp.ParseNotification([]byte("NOTIFY * HTTP/1.1\r\n" +
		"HOST: 239.255.255.250:1900\r\n" +
		"NT: upnp:rootdevice\r\n" +
		"NTS: ssdp:byebye\r\n" +
		"USN: uuid:9a1b::upnp:rootdevice\r\n" +
		"BOOTID.UPNP.ORG: 17\r\n\r\n"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n.Kind, n.UDN(), n.BootID)
	// Output: byebye uuid:9a1b 17
}
