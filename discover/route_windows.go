package discover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	iphlpapi                = windows.NewLazySystemDLL("iphlpapi.dll")
	procGetBestRoute2       = iphlpapi.NewProc("GetBestRoute2")
	procGetIPForwardTable2  = iphlpapi.NewProc("GetIpForwardTable2")
	procGetIPInterfaceEntry = iphlpapi.NewProc("GetIpInterfaceEntry")
	procFreeMibTable        = iphlpapi.NewProc("FreeMibTable")
)

// lookup calls GetBestRoute2, which returns the route and the source address.
func lookup(dst netip.Addr) (Gateway, error) {
	index := 0
	if dst.Zone() != "" {
		ifi, err := net.InterfaceByName(dst.Zone())
		if err != nil {
			return Gateway{}, noRoute(dst, err)
		}
		index = ifi.Index
	}
	r, err := bestRoute(dst, index)
	if err != nil {
		for _, errno := range []windows.Errno{
			windows.ERROR_NETWORK_UNREACHABLE, windows.ERROR_HOST_UNREACHABLE, windows.ERROR_NOT_FOUND,
			windows.ERROR_FILE_NOT_FOUND, windows.ERROR_NOT_SUPPORTED,
		} {
			if errors.Is(err, errno) {
				return Gateway{}, noRoute(dst, err)
			}
		}
		return Gateway{}, fmt.Errorf("discover: route to %v: %w", dst, err)
	}
	if r.refusal != "" {
		return Gateway{}, noRoute(dst, errors.New(r.refusal))
	}
	r.metric += interfaceMetric(r.index, r.is6())
	name, _ := interfaceAt(r.index)
	return r.gateway(name, r.src), nil
}

// bestRoute returns the route to dst with its source address. If index is not 0, the route
// uses the interface with that index.
func bestRoute(dst netip.Addr, index int) (route, error) {
	var row [ipforwardSize/8 + 1]uint64 // aligned as Windows requires
	var src [sockaddrInetSize/8 + 1]uint64
	to := aligned(appendSockaddrInet(nil, dst, uint32(index)))
	code, _, _ := procGetBestRoute2.Call(
		0, uintptr(index), 0, uintptr(unsafe.Pointer(&to[0])), 0,
		uintptr(unsafe.Pointer(&row[0])), uintptr(unsafe.Pointer(&src[0])))
	if code != 0 {
		return route{}, fmt.Errorf("GetBestRoute2: %w", windows.Errno(code))
	}
	r, err := parseIPForwardRow(bytesOf(row[:]))
	if err != nil {
		return route{}, err
	}
	if r.src, err = parseSockaddrInet(bytesOf(src[:])); err != nil {
		return route{}, err
	}
	return r, nil
}

// interfaceMetric returns the metric of an interface, or 0 if it no longer exists.
func interfaceMetric(index int, is6 bool) int64 {
	var row [ipinterfaceSize/8 + 8]uint64 // with space for fields that future versions may add
	b := bytesOf(row[:])
	winOrder.PutUint16(b[ipinterfaceFamily:], winFamily(is6))
	winOrder.PutUint32(b[ipinterfaceIndex:], uint32(index))
	if code, _, _ := procGetIPInterfaceEntry.Call(uintptr(unsafe.Pointer(&row[0]))); code != 0 {
		return 0
	}
	n, err := parseInterfaceMetric(b)
	if err != nil {
		return 0
	}
	return n
}

func defaultRoutes() ([]defaultRoute, error) {
	var out []defaultRoute
	for _, dst := range []netip.Addr{internet4, internet6} {
		b, err := ipforwardTable(dst.Is6())
		if err != nil {
			return nil, fmt.Errorf("discover: list routes: %w", err)
		}
		routes, err := parseIPForwardTable(b)
		if err != nil {
			return nil, fmt.Errorf("discover: list routes: %w", err)
		}
		for _, r := range routes {
			if !r.isDefault() {
				continue
			}
			r.metric += interfaceMetric(r.index, r.is6())
			name, addrs := interfaceAt(r.index)
			local := pickLocal(addrs, r.via, r.is6())
			if best, err := bestRoute(dst, r.index); err == nil && best.index == r.index && best.via == r.via {
				local = best.src
			}
			out = append(out, defaultRoute{Gateway: r.gateway(name, local), is6: r.is6()})
		}
	}
	return out, nil
}

// ipforwardTable returns the MIB_IPFORWARD_TABLE2 of an address family.
func ipforwardTable(is6 bool) ([]byte, error) {
	var table unsafe.Pointer // memory that Windows allocates
	code, _, _ := procGetIPForwardTable2.Call(uintptr(winFamily(is6)), uintptr(unsafe.Pointer(&table)))
	switch {
	case windows.Errno(code) == windows.ERROR_NOT_FOUND || windows.Errno(code) == windows.ERROR_NOT_SUPPORTED:
		return make([]byte, ipforwardTableHead), nil
	case code != 0:
		return nil, fmt.Errorf("GetIpForwardTable2: %w", windows.Errno(code))
	case table == nil:
		return nil, errors.New("GetIpForwardTable2 returned no table")
	}
	defer func() { _, _, _ = procFreeMibTable.Call(uintptr(table)) }()
	size := ipforwardTableHead + int(*(*uint32)(table))*ipforwardSize
	return slices.Clone(unsafe.Slice((*byte)(table), size)), nil
}

func winFamily(is6 bool) uint16 {
	if is6 {
		return winInet6
	}
	return winInet
}

// aligned copies b to memory aligned to 8 bytes.
func aligned(b []byte) []uint64 {
	out := make([]uint64, (len(b)+7)/8)
	copy(bytesOf(out), b)
	return out
}

func bytesOf(n []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&n[0])), 8*len(n))
}
