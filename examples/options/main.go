// Options and errors: the program maps port 443 of the router to the local port 8443. If
// that port is in use, it maps another port. If this fails too, it explains the error.
//
//	go run ./examples/options
package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

func main() {
	m, err := forward.Enable(forward.TCP(8443), forward.External(443), forward.Exact(),
		forward.Lifetime(time.Hour), forward.Description("my server"))
	if errors.Is(err, backends.ErrConflict) {
		fmt.Println("port 443 is in use: trying any other port")
		m, err = forward.Enable(forward.TCP(8443), forward.Description("my server"))
	}
	if err != nil {
		explain(err)
		return
	}
	fmt.Println(m.External(), "by", m.Backend())
	if m.Scope() != backends.ScopePublic {
		fmt.Println("but that address is", m.Scope(), "and not reachable from the internet")
	}
	if err := m.Close(); err != nil {
		fmt.Println(err)
	}
}

// explain distinguishes errors in the same way for every protocol. The text of the error
// contains the same information.
func explain(err error) {
	switch {
	case errors.Is(err, forward.ErrNoGateway):
		fmt.Println("there is no router, or its port forwarding is disabled")
	case errors.Is(err, backends.ErrNotAuthorized):
		fmt.Println("the router does not let this host open ports")
	case errors.Is(err, backends.ErrPrivateWAN), errors.Is(err, backends.ErrNetworkFailure):
		fmt.Println("the router is offline, or behind another NAT")
	default:
		fmt.Println("the port cannot be mapped")
	}
	var all *forward.Error
	if errors.As(err, &all) {
		for _, attempt := range all.Attempts { // one for each protocol
			fmt.Println("-", attempt)
		}
	}
	var fault *upnp.Fault // natpmp and pcp have a ResultError
	if errors.As(err, &fault) {
		fmt.Println("the UPnP error code is", int(fault.Code))
	}
}
