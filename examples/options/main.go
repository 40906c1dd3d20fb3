// Options, and what went wrong: port 443 of the router to port 8443 here, or else
// another, or else why not.
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
		fmt.Println("port 443 is taken, so any other")
		m, err = forward.Enable(forward.TCP(8443), forward.Description("my server"))
	}
	if err != nil {
		explain(err)
		return
	}
	fmt.Println(m.External(), "by", m.Backend())
	if m.Scope() != backends.ScopePublic {
		fmt.Println("but that address is", m.Scope(), "and not the internet's")
	}
	if err := m.Close(); err != nil {
		fmt.Println(err)
	}
}

// explain tells errors apart, whichever protocol they came by. Printed as it
// is, an error says all of this.
func explain(err error) {
	switch {
	case errors.Is(err, forward.ErrNoGateway):
		fmt.Println("there is no router, or its port forwarding is switched off")
	case errors.Is(err, backends.ErrNotAuthorized):
		fmt.Println("the router does not let this host open ports")
	case errors.Is(err, backends.ErrPrivateWAN), errors.Is(err, backends.ErrNetworkFailure):
		fmt.Println("the router is offline, or behind another NAT")
	default:
		fmt.Println("it cannot be done")
	}
	var all *forward.Error
	if errors.As(err, &all) {
		for _, attempt := range all.Attempts { // one for each protocol
			fmt.Println("-", attempt)
		}
	}
	var fault *upnp.Fault // natpmp and pcp have a ResultError
	if errors.As(err, &fault) {
		fmt.Println("in UPnP that is error", int(fault.Code))
	}
}
