//go:build !linux

package discover

import "net/netip"

func stable(Gateway) (netip.Addr, bool) { return netip.Addr{}, false }
