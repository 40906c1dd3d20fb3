package discover

import (
	"errors"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

// system is the routing of Windows.
var system = ipHelper{
	bestRoute:       bestRoute,
	table:           ipforwardTable,
	interfaceMetric: interfaceMetric,
	interfaceAt:     interfaceAt,
}

func lookup(dst netip.Addr) (Gateway, error) {
	index := 0
	if dst.Zone() != "" {
		ifi, err := net.InterfaceByName(dst.Zone())
		if err != nil {
			return Gateway{}, noRoute(dst, err)
		}
		index = ifi.Index
	}
	return system.lookup(dst, index)
}

func defaultRoutes() ([]defaultRoute, error) { return system.defaultRoutes() }

// bestRoute calls GetBestRoute2, which returns the route and the source address.
func bestRoute(dst netip.Addr, index int) (route, error) {
	var row [ipforwardSize/8 + 1]uint64 // aligned as Windows requires
	var src [sockaddrInetSize/8 + 1]uint64
	to := aligned(appendSockaddrInet(nil, dst, uint32(index)))
	err := call(procGetBestRoute2,
		0, uintptr(index), 0, uintptr(unsafe.Pointer(&to[0])), 0,
		uintptr(unsafe.Pointer(&row[0])), uintptr(unsafe.Pointer(&src[0])))
	for _, errno := range []windows.Errno{
		windows.ERROR_NETWORK_UNREACHABLE, windows.ERROR_HOST_UNREACHABLE, windows.ERROR_NOT_FOUND,
		windows.ERROR_FILE_NOT_FOUND,
	} {
		if errors.Is(err, errno) {
			return route{}, noRoute(dst, err)
		}
	}
	if err != nil {
		return route{}, err
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

// interfaceMetric calls GetIpInterfaceEntry.
func interfaceMetric(index int, is6 bool) (int64, error) {
	var row [ipinterfaceSize/8 + 8]uint64 // with space for fields that future versions may add
	b := bytesOf(row[:])
	winOrder.PutUint16(b[ipinterfaceFamily:], winFamily(is6))
	winOrder.PutUint32(b[ipinterfaceIndex:], uint32(index))
	if err := call(procGetIPInterfaceEntry, uintptr(unsafe.Pointer(&row[0]))); err != nil {
		return 0, err
	}
	return parseInterfaceMetric(b)
}

// ipforwardTable calls GetIpForwardTable2.
func ipforwardTable(is6 bool) ([]route, error) {
	var table unsafe.Pointer // memory that Windows allocates
	err := call(procGetIPForwardTable2, uintptr(winFamily(is6)), uintptr(unsafe.Pointer(&table)))
	switch {
	case errors.Is(err, windows.ERROR_NOT_FOUND) || errors.Is(err, windows.ERROR_NOT_SUPPORTED):
		return nil, nil
	case err != nil:
		return nil, err
	case table == nil:
		return nil, errors.New("GetIpForwardTable2 returned no table")
	}
	defer func() { _ = call(procFreeMibTable, uintptr(table)) }() // it returns nothing
	size := ipforwardTableHead + int(*(*uint32)(table))*ipforwardSize
	return parseIPForwardTable(unsafe.Slice((*byte)(table), size))
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
