package reflector_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/reach/reflector"
)

// A reflector on a host of the internet would have no Allow, and a Log. This one serves this host.
func Example() {
	h, err := reflector.New(reflector.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx, ln, nil) }()

	for _, path := range []string{"/v1/ip", "/"} {
		response, err := http.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			log.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil {
			log.Fatal(err)
		}
		response.Body.Close()
		fmt.Println(response.StatusCode, strings.TrimSpace(string(text)))
	}

	cancel()
	fmt.Println(<-ended, h.Stats().Requests)
	// Output:
	// 200 {"address":"127.0.0.1"}
	// 404 {"error":"there are only /v1/probe and /v1/ip"}
	// <nil> 2
}

// A Handler also fits into a server of a program, which must limit the time for headers and the number
// of connections.
func ExampleHandler_ServeHTTP() {
	h, err := reflector.New(reflector.Config{
		DialFrom:   []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		TrustProxy: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
		Token:      "correct-horse-battery",
	})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/", h)

	_, err = reflector.New(reflector.Config{Token: "secret"})
	fmt.Println(err)
	// Output:
	// invalid request: the token has 6 characters, and must have at least 16
}
