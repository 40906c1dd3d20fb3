package lab

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// frameHeaderSize is the size of the virtio header before each frame of a packet socket
// with PACKET_VNET_HDR. The cable copies the header with the frame. So checksums that the
// kernel left to the hardware, and segments that it did not split, stay as they are.
const (
	frameHeaderSize = 10
	frameBufferSize = frameHeaderSize + 14 + 64<<10
)

// packetSocket opens a socket that receives the frames that arrive at the interface and
// sends what is written to it through the interface.
func packetSocket(netns, name string) (f *os.File, err error) {
	err = inNetns(netns, func() error {
		f, err = openPacketSocket(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return f, nil
}

func openPacketSocket(name string) (*os.File, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	// Without a protocol, the socket receives nothing before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet socket on "+name), nil
}

// isClosed reports whether err means that the socket is closed, and not that the
// interface is down.
func isClosed(err error) bool {
	return err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS)
}
