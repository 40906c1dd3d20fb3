package nat_test

import (
	"context"
	"net"
	"time"

	nat "github.com/natforward/goforward/adapters/gonat"
)

// goNAT is the interface NAT as go-nat v0.2 and netbird's fork declare it.
type goNAT interface {
	Type() string
	GetDeviceAddress() (addr net.IP, err error)
	GetExternalAddress() (addr net.IP, err error)
	GetInternalAddress() (addr net.IP, err error)
	AddPortMapping(ctx context.Context, protocol string, internalPort int, description string, timeout time.Duration) (mappedExternalPort int, err error)
	DeletePortMapping(ctx context.Context, protocol string, internalPort int) (err error)
}

// The interfaces goNAT and nat.NAT have the same methods, and the package has go-nat's
// functions and errors.
var (
	_ goNAT                                  = nat.NAT(nil)
	_ nat.NAT                                = goNAT(nil)
	_ goNAT                                  = (*nat.Gateway)(nil)
	_ func(context.Context) (nat.NAT, error) = nat.DiscoverGateway
	_ func(context.Context) <-chan nat.NAT   = nat.DiscoverNATs
	_ error                                  = nat.ErrNoExternalAddress
	_ error                                  = nat.ErrNoInternalAddress
	_ error                                  = nat.ErrNoNATFound
)
