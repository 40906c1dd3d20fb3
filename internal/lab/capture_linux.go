package lab

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// captureBuffer is the size of the receive buffer of a capture. A small packet takes about one
// kilobyte of it.
const captureBuffer = 16 << 20

// captureSocket returns a socket that receives a copy of each packet of the interface, without
// the link-layer header.
func captureSocket(netns, name string) (f *os.File, err error) {
	err = inNetns(netns, func() error {
		f, err = openCaptureSocket(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return f, nil
}

func openCaptureSocket(name string) (*os.File, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// Without a protocol, the socket receives nothing before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer) // as much as the system permits
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "capture of "+name), nil
}

// readCaptured calls fn for each packet that the socket has received, and returns how many
// packets did not fit into its buffer since the last call.
func readCaptured(f *os.File, fn func(out bool, packet []byte)) (lost int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Control(func(fd uintptr) {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := unix.Recvfrom(int(fd), buf, 0)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
				continue
			case errors.Is(err, unix.EAGAIN):
			case err != nil:
				readErr = err
			default:
				link, ok := from.(*unix.SockaddrLinklayer)
				fn(ok && link.Pkttype == unix.PACKET_OUTGOING, buf[:n])
				continue
			}
			break
		}
		stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			readErr = errors.Join(readErr, err)
			return
		}
		lost = int(stats.Drops)
	})
	return lost, errors.Join(err, readErr)
}
