//go:build unix && !linux && !darwin

package netbind

import "net"

// ToInterface does nothing: the route decides for unicast. These systems have no option to
// bind a socket to an interface, or it was never tested with this package (Solaris).
func ToInterface(uintptr, string, *net.Interface) error { return nil }
