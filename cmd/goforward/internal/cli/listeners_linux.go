package cli

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/natforward/goforward/backends"
)

// systemListeners reads the kernel's tables of sockets (proc_net(5)).
func systemListeners(p backends.Protocol, internal netip.AddrPort) ([]netip.Addr, error) {
	if p != backends.TCP && p != backends.UDP {
		return nil, errors.ErrUnsupported
	}
	var out []netip.Addr
	for _, name := range []string{p.String(), p.String() + "6"} {
		text, err := readProc("/proc/net/" + name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, "6") { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, parseSockets(string(text), p, internal.Port())...)
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

// parseSockets returns the local addresses of the sockets in a table that wait at a port: TCP
// sockets that listen, and UDP sockets that are not connected.
func parseSockets(table string, p backends.Protocol, port uint16) (out []netip.Addr) {
	state := "0A" // TCP_LISTEN
	if p == backends.UDP {
		state = "07" // TCP_CLOSE
	}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line) // slot, local address, remote address, state, …
		if len(fields) < 4 || fields[3] != state {
			continue
		}
		addr, number, _ := strings.Cut(fields[1], ":")
		n, err := strconv.ParseUint(number, 16, 16)
		if err != nil || uint16(n) != port {
			continue
		}
		if ip, ok := parseSocketAddr(addr); ok {
			out = append(out, ip)
		}
	}
	return out
}

// parseSocketAddr reads an address of 32-bit words in the byte order of the host.
func parseSocketAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return addr.Unmap(), ok
}
