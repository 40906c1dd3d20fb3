package natpmp_test

import (
	"errors"
	"fmt"
	"net"
	"time"

	natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
	"github.com/natforward/goforward/backends"
)

// What the errors of go-nat-pmp do not tell apart.
func Example() {
	client := natpmp.NewClientWithTimeout(net.IPv4(127, 0, 0, 1), time.Nanosecond) // nobody answers that fast
	_, err := client.AddPortMapping("tcp", 8080, 8080, 3600)
	switch {
	case errors.Is(err, backends.ErrNoReply):
		fmt.Println("no NAT-PMP here")
	case errors.Is(err, backends.ErrUnsupported):
		fmt.Println("it speaks PCP")
	case errors.Is(err, backends.ErrNotAuthorized):
		fmt.Println("it refuses")
	}
	// Output: no NAT-PMP here
}
