package reach

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/natforward/goforward/backends"
)

// The functions of the IP helper API that this package uses. Only call calls them.
var (
	iphlpapi                = windows.NewLazySystemDLL("iphlpapi.dll")
	procGetExtendedTCPTable = iphlpapi.NewProc("GetExtendedTcpTable")
	procGetExtendedUDPTable = iphlpapi.NewProc("GetExtendedUdpTable")
)

// The classes of tables: values of TCP_TABLE_CLASS and UDP_TABLE_CLASS. Windows has no smaller
// class for the connections of IPv6.
const (
	tcpTableOwnerPIDAll = 5
	udpTableOwnerPID    = 1
)

// readTable reads the tables of sockets of both families.
func readTable(p backends.Protocol, port uint16) ([]socket, error) {
	proc, class := procGetExtendedTCPTable, uintptr(tcpTableOwnerPIDAll)
	switch p {
	case backends.TCP:
	case backends.UDP:
		proc, class = procGetExtendedUDPTable, udpTableOwnerPID
	default:
		return nil, errors.ErrUnsupported
	}
	var out []socket
	for _, family := range []uintptr{windows.AF_INET, windows.AF_INET6} {
		table, err := extendedTable(proc, family, class)
		if family == windows.AF_INET6 && errors.Is(err, windows.ERROR_NOT_SUPPORTED) { // a system without IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		rows, err := parseIPHelper(table, p, family == windows.AF_INET6, port)
		if err != nil {
			return nil, err
		}
		out = append(out, rows...)
	}
	return out, nil
}

// extendedTable calls GetExtendedTcpTable or GetExtendedUdpTable until the buffer is large
// enough. The table may grow between the calls.
func extendedTable(proc *windows.LazyProc, family, class uintptr) (table []byte, err error) {
	size := uint32(16 << 10)
	for range 8 {
		buf := make([]uint64, size/8+1) // aligned as Windows requires
		size = uint32(8 * len(buf))
		err = call(proc, uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0, family, class, 0)
		if !errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) {
			return unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), 8*len(buf)), err
		}
		size += size / 4
	}
	return nil, err
}
