package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// router is the examples' gateway; a program of yours needs none of this.
func router() *gatewaytest.Gateway {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	err = forward.Configure(gw.Config())
	if err != nil {
		log.Fatal(err)
	}
	return gw
}

func Example() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello from behind the router")
	}))
	defer ln.Close()

	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	m, err := forward.Enable(forward.TCP(port), forward.External(8080))
	if err != nil {
		log.Fatal(err)
	}
	defer forward.Disable()
	fmt.Println("reachable at", m.External())

	// Somebody on the internet:
	client := &http.Client{Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.External().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s\n", body)
	// Output:
	// reachable at 45.45.45.1:8080
	// hello from behind the router
}

func ExampleEnable() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	m, err := forward.Enable(forward.Both(27015), forward.Description("game server"))
	if err != nil {
		log.Fatal(err)
	}
	for _, granted := range m.Grants() {
		fmt.Println(granted.Protocol, granted.External, "until renewed:", granted.Lifetime)
	}
	fmt.Println(m.Scope(), "by", m.Backend())
	// Output:
	// tcp 45.45.45.1:27015 until renewed: 2h0m0s
	// udp 45.45.45.1:27015 until renewed: 2h0m0s
	// public by natpmp
}

func ExampleExact() {
	gw := router()
	defer gw.Close()
	defer forward.Close()
	err := gw.AddMapping(gatewaytest.Entry{ // another host has the port
		Protocol: backends.TCP,
		Internal: netip.MustParseAddrPort("127.0.0.9:443"),
		External: netip.AddrPortFrom(gw.External(), 443),
	})
	if err != nil {
		log.Fatal(err)
	}

	_, err = forward.Enable(forward.TCP(8443), forward.External(443), forward.Exact())
	if errors.Is(err, backends.ErrConflict) {
		fmt.Println("somebody else has port 443")
	}
	// Output: somebody else has port 443
}

func ExampleForwarder() {
	gw := router()
	defer gw.Close()

	f, err := forward.New(gw.Config()) // nil: with the gateway that leads to the internet
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	ctx := context.Background()
	if _, err := f.Enable(ctx, forward.UDP(9000)); err != nil {
		log.Fatal(err)
	}
	entries, err := f.Mappings(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Println(e.Mapping.Protocol, e.Mapping.External, "→", e.Mapping.Internal.Port())
	}
	// Output: udp 45.45.45.1:9000 → 9000
}

func ExampleMapping_Changed() {
	gw := router()
	defer gw.Close()
	defer forward.Close()
	m, err := forward.Enable(forward.TCP(8080))
	if err != nil {
		log.Fatal(err)
	}

	changed := m.Changed() // before reading, so that no change is missed
	fmt.Println(m.External())
	gw.SetExternal(netip.MustParseAddr("45.45.45.99"))
	if err := m.Refresh(context.Background()); err != nil {
		log.Fatal(err)
	}
	<-changed
	fmt.Println(m.External())
	// Output:
	// 45.45.45.1:8080
	// 45.45.45.99:8080
}

// A mapping for any port that is free, and its end.
func Example_anyPort() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	m, err := forward.Enable()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.External().Addr(), m.External().Port() == m.Internal().Port())
	if err := forward.Disable(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(gw.Table()), "left")
	// Output:
	// 45.45.45.1 true
	// 0 left
}

// All that the gateway forwards, deleted one by one, whoever it is for. This is
// a gateway that lets its hosts do so.
func Example_deleteAll() {
	gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}})
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	for port := range uint16(3) { // other hosts have been busy
		err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.77.9:80"),
			External: netip.AddrPortFrom(gw.External(), 8080+port),
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := forward.Configure(&forward.Config{UPnPURL: gw.UPnP().DescriptionURL()}); err != nil {
		log.Fatal(err)
	}
	defer forward.Close()

	entries, err := forward.Mappings()
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Println(e.Mapping.Protocol, e.Mapping.External, "→", e.Mapping.Internal)
		err := forward.Disable(forward.Foreign(),
			forward.Protocol(e.Mapping.Protocol, 0), forward.External(e.Mapping.External.Port()))
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(len(gw.Table()), "left")
	// Output:
	// tcp 45.45.45.1:8080 → 192.168.77.9:80
	// tcp 45.45.45.1:8081 → 192.168.77.9:80
	// tcp 45.45.45.1:8082 → 192.168.77.9:80
	// 0 left
}

// A mapping that was left to expire is asked for again, in place.
func Example_refresh() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	m, err := forward.Enable(forward.TCP(8080), forward.Lifetime(5*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	gw.Advance(10 * time.Second) // it has expired
	fmt.Println(len(gw.Table()), "forwarded")
	if err := forward.Refresh(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(gw.Table()), "forwarded:", m.External())
	// Output:
	// 0 forwarded
	// 1 forwarded: 45.45.45.1:8080
}
