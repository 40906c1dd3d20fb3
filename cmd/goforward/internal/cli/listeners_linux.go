package cli

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
)

// systemListeners reads the kernel's tables of sockets (proc_net(5)).
func systemListeners(p backends.Protocol, internal netip.AddrPort) ([]netip.Addr, error) {
	if p != backends.TCP && p != backends.UDP {
		return nil, errors.ErrUnsupported
	}
	var out []netip.Addr
	for _, name := range []string{p.String(), p.String() + "6"} {
		text, err := os.ReadFile("/proc/net/" + name)
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
