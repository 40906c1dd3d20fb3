package forward_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// router starts the gateway of the examples, and configures the package to use it. A
// program needs neither.
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

	// A client on the internet:
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

// This example waits until a mapping in the background is granted.
func ExampleBackground() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	// Enable returns at once, even if there is no network yet.
	m, err := forward.Enable(forward.TCP(8080), forward.Background())
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.Wait(ctx); err != nil {
		log.Fatal(err, m.Err()) // m.Err is the error of the last attempt
	}
	fmt.Println("reachable at", m.External())
	// Output: reachable at 45.45.45.1:8080
}

// This example prints the events of a mapping whose external address changes.
func ExampleConfig_onEvent() {
	gw := router()
	defer gw.Close()
	ctx := context.Background()

	events := make(chan forward.Event, 10)
	config := gw.Config() // a program starts with &forward.Config{}
	config.OnEvent = func(e forward.Event) { events <- e }
	f, err := forward.New(config)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	m, err := f.Enable(ctx, forward.TCP(8080))
	if err != nil {
		log.Fatal(err)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.99")) // the provider assigns another address
	if err := m.Refresh(ctx); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		e := <-events
		fmt.Println(e.Kind, e.Grants[0].External)
	}
	// Output:
	// mapped 45.45.45.1:8080
	// changed 45.45.45.99:8080
}

// This example takes over the mapping of an earlier run that ended without Close.
func ExampleConfig_stateFile() {
	gw := router()
	defer gw.Close()
	dir, err := os.MkdirTemp("", "goforward-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	config := gw.Config() // a program starts with &forward.Config{}
	config.StateFile = filepath.Join(dir, "state")
	first, err := forward.New(config)
	if err != nil {
		log.Fatal(err)
	}
	m, err := first.Enable(ctx, forward.TCP(8080), forward.External(9000))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("first run:", m.External())
	crash(first, config.StateFile) // the program ends without Close
	gw.Restart(gatewaytest.RestartOptions{})

	second, err := forward.New(config)
	if err != nil {
		log.Fatal(err)
	}
	defer second.Close()
	m, err = second.Enable(ctx, forward.TCP(8080)) // the state file has the external port
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("second run:", m.External())
	fmt.Println(len(gw.Table()), "mapping")
	// Output:
	// first run: 45.45.45.1:9000
	// second run: 45.45.45.1:9000
	// 1 mapping
}

// crash ends a Forwarder like a crash of its process, after the state file was written.
func crash(f *forward.Forwarder, stateFile string) {
	for range 10000 {
		content, _ := os.ReadFile(stateFile)
		if bytes.Contains(content, []byte("External")) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	f.Crash()
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
		fmt.Println(granted.Protocol, granted.External, "lifetime", granted.Lifetime)
	}
	fmt.Println(m.Scope(), "by", m.Backend())
	// Output:
	// tcp 45.45.45.1:27015 lifetime 2h0m0s
	// udp 45.45.45.1:27015 lifetime 2h0m0s
	// public by natpmp
}

// This example prints the result of each protocol that was tried.
func ExampleError() {
	gw := router()
	defer gw.Close()
	config := gw.Config() // a program starts with &forward.Config{}
	config.Protocols = []string{"natpmp", "pcp"}
	f, err := forward.New(config)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	gw.Inject(gatewaytest.Fault{ // the gateway refuses every mapping
		Match:  func(r gatewaytest.Request) bool { return r.Op == "map" },
		Result: int(natpmp.NotAuthorized), // PCP uses the same number
	})

	_, err = f.Enable(context.Background(), forward.TCP(8080))
	var e *forward.Error
	if errors.As(err, &e) {
		fmt.Println(e.Kind)
		for _, attempt := range e.Attempts {
			fmt.Println("-", attempt)
		}
	}
	// Unordered output:
	// the gateway refuses
	// - natpmp: map tcp: not authorized or refused (result 2)
	// - pcp: map: not authorized or refused (result 2), for the next 30m0s
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
		fmt.Println("port 443 is taken by another host")
	}
	// Output: port 443 is taken by another host
}

func ExampleForwarder() {
	gw := router()
	defer gw.Close()

	f, err := forward.New(gw.Config()) // a program passes nil, or its own Config
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

// This example opens a pinhole in an IPv6 firewall.
func ExampleIPv6() {
	gw := ipv6Router()
	defer gw.Close()
	defer forward.Close()

	// A pinhole translates nothing: the external endpoint is the address of this host.
	m, err := forward.Enable(forward.TCP(8080), forward.IPv6())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.External(), "→", m.Internal())
	// Output: [::1]:8080 → [::1]:8080
}

// ipv6Router is router with an IPv6 firewall as the gateway.
func ipv6Router() *gatewaytest.Gateway {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		log.Fatal(err)
	}
	config := gw.Config()
	config.Gateway = gw.Addr6()
	config.Test.Announce = netip.MustParseAddrPort("[::1]:0")
	if err := forward.Configure(config); err != nil {
		log.Fatal(err)
	}
	return gw
}

func ExampleListen() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	ln, err := forward.Listen("tcp", ":0", forward.External(8080))
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello from behind the router")
	}))

	// The server accepts local connections already. Wait for the external endpoint:
	if err := ln.Mapping().Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("reachable at", ln.External())

	// A client on the internet:
	client := &http.Client{Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.External().String())
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

func ExampleMapping_Changed() {
	gw := router()
	defer gw.Close()
	defer forward.Close()
	m, err := forward.Enable(forward.TCP(8080))
	if err != nil {
		log.Fatal(err)
	}

	changed := m.Changed() // call it before External, so that no change is missed
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

// This example forwards a port until the program is interrupted.
func ExampleRun() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	// Run keeps the mapping until its context ends, for example with Ctrl-C.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := forward.Run(ctx, forward.TCP(8080), forward.OnChange(func(e forward.Event) {
		fmt.Println(e.Kind, e.Mapping.External())
		stop() // like Ctrl-C
	}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(gw.Table()), "mappings remain")
	// Output:
	// mapped 45.45.45.1:8080
	// 0 mappings remain
}

// This example forwards any free port, and deletes the mapping.
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
	fmt.Println(len(gw.Table()), "mappings remain")
	// Output:
	// 45.45.45.1 true
	// 0 mappings remain
}

// This example deletes all mappings of the gateway one by one, including those of other
// hosts. The gateway must allow this.
func Example_deleteAll() {
	gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}})
	if err != nil {
		log.Fatal(err)
	}
	defer gw.Close()
	for port := range uint16(3) { // mappings of another host
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
	fmt.Println(len(gw.Table()), "mappings remain")
	// Output:
	// tcp 45.45.45.1:8080 → 192.168.77.9:80
	// tcp 45.45.45.1:8081 → 192.168.77.9:80
	// tcp 45.45.45.1:8082 → 192.168.77.9:80
	// 0 mappings remain
}

// This example requests an expired mapping again, in place.
func Example_refresh() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	m, err := forward.Enable(forward.TCP(8080), forward.Lifetime(5*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	gw.Advance(10 * time.Second) // now it has expired
	fmt.Println(len(gw.Table()), "mappings")
	if err := forward.Refresh(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(gw.Table()), "mapping:", m.External())
	// Output:
	// 0 mappings
	// 1 mapping: 45.45.45.1:8080
}
