//go:build !linux && !darwin && !windows

package upnp

import "net"

// bindToInterface leaves the choice to the route: these systems have no option
// for it.
func bindToInterface(uintptr, string, *net.Interface) error { return nil }
