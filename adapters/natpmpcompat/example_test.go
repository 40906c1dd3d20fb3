package natpmp_test

import (
	"errors"
	"fmt"
	"net"
	"time"

	natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
	"github.com/natforward/goforward/backends"
)

// This example distinguishes errors that go-nat-pmp does not distinguish.
func Example() {
	client := natpmp.NewClientWithTimeout(net.IPv4(127, 0, 0, 1), time.Nanosecond) // too short for any reply
	_, err := client.AddPortMapping("tcp", 8080, 8080, 3600)
	switch {
	case errors.Is(err, backends.ErrNoReply):
		fmt.Println("no NAT-PMP here")
	case errors.Is(err, backends.ErrUnsupported):
		fmt.Println("the gateway supports only PCP")
	case errors.Is(err, backends.ErrNotAuthorized):
		fmt.Println("the gateway refuses")
	}
	// Output: no NAT-PMP here
}
