package discover

import (
	"math"
	"net"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestInterfaceName compares the names with those of package net.
func TestInterfaceName(t *testing.T) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	interfaces, err := net.Interfaces()
	if err != nil || len(interfaces) == 0 {
		t.Fatalf("no interfaces: %v", err)
	}
	for _, ifi := range interfaces {
		if name, err := requestInterfaceName(c, ifi.Index); name != ifi.Name || err != nil {
			t.Errorf("requestInterfaceName(%d) = %q, %v, want %q", ifi.Index, name, err, ifi.Name)
		}
	}
	if name, err := requestInterfaceName(c, math.MaxInt32); err == nil {
		t.Errorf("requestInterfaceName returns %q for an interface that does not exist", name)
	}
	if name := interfaceName(c, math.MaxInt32); name != "" {
		t.Errorf("interfaceName returns %q for an interface that does not exist", name)
	}
}
