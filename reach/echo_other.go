//go:build !linux && !darwin

package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// echo fails: this package cannot send ICMP echo requests on this system.
func echo(context.Context, *net.Interface, netip.Addr) error { return errors.ErrUnsupported }
