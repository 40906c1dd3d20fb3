//go:build unix && !linux && !darwin

package netbind

import "net"

// ToInterface leaves unicast to the route: these systems have no option for
// it, or one that nobody has tried here (Solaris).
func ToInterface(uintptr, string, *net.Interface) error { return nil }
