//go:build unix && !linux && !darwin

package ssdp

import "net"

// bindToInterface leaves unicast to the route: these systems have no option for
// it.
func bindToInterface(uintptr, string, *net.Interface) error { return nil }
