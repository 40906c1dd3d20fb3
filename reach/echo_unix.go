//go:build linux || darwin

package reach

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/netbind"
)

const (
	echoRequests = 3
	echoInterval = 500 * time.Millisecond
	icmpEcho     = 8 // type of an echo request (RFC 792)
	icmpHeader   = 8
)

// echo sends ICMP echo requests through an interface. It returns nil if the host with the
// address replies. It needs no privileges, but the system may forbid it (ping_group_range).
func echo(ctx context.Context, ifi *net.Interface, to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	unix.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "icmp")
	if err := netbind.ToInterface(uintptr(fd), "udp4", ifi); err != nil {
		_ = file.Close()
		return err
	}
	conn, err := net.FilePacketConn(file)
	_ = file.Close()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	request := make([]byte, icmpHeader+16)
	request[0] = icmpEcho
	_, _ = rand.Read(request[icmpHeader:]) // it never fails
	reply := make([]byte, 512)
	for i := range echoRequests {
		binary.BigEndian.PutUint16(request[6:], uint16(i)) // sequence number; Linux sets the identifier
		binary.BigEndian.PutUint16(request[2:], 0)
		binary.BigEndian.PutUint16(request[2:], checksum(request))
		if _, err := conn.WriteTo(request, &net.UDPAddr{IP: to.AsSlice()}); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(echoInterval))
		for {
			n, from, err := conn.ReadFrom(reply)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				break // the time is over
			}
			source, ok := from.(*net.UDPAddr)
			if ok && source.AddrPort().Addr().Unmap() == to && bytes.HasSuffix(reply[:n], request[icmpHeader:]) {
				return nil
			}
		}
	}
	return os.ErrDeadlineExceeded
}

// checksum returns the checksum of an ICMP message (RFC 1071). The length is even.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
