package reach

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/natforward/goforward/backends"
)

// The states of sockets in the kernel's tables.
const (
	stateListen  = "0A" // TCP_LISTEN
	stateUnbound = "07" // TCP_CLOSE: a UDP socket that is not connected
	stateSynSent = "02"
	stateSynRecv = "03"
)

// readTable reads the kernel's tables of sockets (proc_net(5)).
func readTable(p backends.Protocol, port uint16) ([]socket, error) {
	if p != backends.TCP && p != backends.UDP {
		return nil, errors.ErrUnsupported
	}
	var out []socket
	for _, name := range []string{p.String(), p.String() + "6"} {
		text, err := readProc("/proc/net/" + name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, "6") { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, parseTable(string(text), p, port)...)
	}
	return out, nil
}

// readProc reads a file of procfs. Package os would read it in small pieces, and register it with
// the poller.
func readProc(path string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = syscall.Close(fd) }()
	text := make([]byte, 0, 16<<10)
	for {
		n, err := syscall.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n <= 0:
			return text, nil
		}
		text = slices.Grow(text[:len(text)+n], 4<<10)
	}
}

// parseTable returns the sockets of a table whose local port is port.
func parseTable(table string, p backends.Protocol, port uint16) (out []socket) {
	number := fmt.Sprintf(":%04X ", port)
	for line := range strings.Lines(table) {
		if !strings.Contains(line, number) { // a host may have many thousands of sockets
			continue
		}
		fields := strings.Fields(line) // slot, local address, remote address, state, …
		if len(fields) < 4 {
			continue
		}
		local, ok := parseEndpoint(fields[1])
		remote, okRemote := parseEndpoint(fields[2])
		if !ok || !okRemote || local.Port() != port {
			continue
		}
		s := socket{local: local.Addr(), remote: remote}
		switch state := fields[3]; {
		case p == backends.UDP:
			s.listens = state == stateUnbound
		case state == stateListen:
			s.listens = true
		default:
			s.open = state != stateSynSent && state != stateSynRecv && remote.Port() != 0
		}
		out = append(out, s)
	}
	return out
}

// parseEndpoint reads an address of 32-bit words in the byte order of the host, and a port.
func parseEndpoint(s string) (netip.AddrPort, bool) {
	text, number, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(text)
	port, portErr := strconv.ParseUint(number, 16, 16)
	if err != nil || portErr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}
