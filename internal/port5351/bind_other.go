//go:build unix && !linux && !darwin

package port5351

import "net"

// bindToInterface leaves the choice to the route: these systems have no option
// for it.
func bindToInterface(uintptr, string, *net.Interface) error { return nil }
