package bench

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// sniffer is a socket on which the kernel queues copies of datagrams with their times. It is
// not read while a sample is taken.
type sniffer struct{ fd int }

const (
	offProto = 9 // in the IPv4 header, which has 20 bytes because these packets have no options
	offSport = 20
	offDport = 22
	offData  = 28
	protoUDP = 17
	portSSDP = 1900
)

// datagramsOf returns a filter that accepts UDP over IPv4 from or to a port.
func datagramsOf(port uint32) ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 7},
		bpf.LoadAbsolute{Off: offProto, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP, SkipTrue: 5},
		bpf.LoadAbsolute{Off: offSport, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: port, SkipTrue: 2},
		bpf.LoadAbsolute{Off: offDport, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: 128},
		bpf.RetConstant{Val: 0},
	})
}

// sniffSearches starts a sniffer for SSDP. Without the permission for it, the sniffer
// captures nothing.
func sniffSearches() sniffer { return sniffPort(portSSDP) }

func sniffPort(port uint32) sniffer {
	none := sniffer{-1}
	// The kernel copies outgoing packets only to sockets for all protocols.
	proto := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return none
	}
	raw, err := datagramsOf(port)
	if err != nil {
		unix.Close(fd)
		return none
	}
	var filter []unix.SockFilter
	for _, i := range raw {
		filter = append(filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	}
	if err != nil {
		unix.Close(fd)
		return none
	}
	return sniffer{fd}
}

// datagram is a captured datagram.
type datagram struct {
	at           time.Time
	out          bool
	sport, dport uint16
	op           byte // the second byte of its data
}

// next returns the next captured datagram. ok is false if there is none.
func (s sniffer) next() (d datagram, ok bool) {
	var packet [128]byte
	var control [128]byte
	n, cn, _, from, err := unix.Recvmsg(s.fd, packet[:], control[:], 0)
	if err != nil || n < offData {
		return datagram{}, false
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		return datagram{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			d.at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	link, _ := from.(*unix.SockaddrLinklayer)
	d.out = link != nil && link.Pkttype == unix.PACKET_OUTGOING
	d.sport, d.dport = binary.BigEndian.Uint16(packet[offSport:]), binary.BigEndian.Uint16(packet[offDport:])
	if n > offData+1 {
		d.op = packet[offData+1]
	}
	return d, true
}

func (s sniffer) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
}

// delay returns the time from the first search to the first response, or 0 if there was no
// response, and closes the sniffer. It ignores responses to ports that have not searched,
// such as late responses to an earlier candidate.
func (s sniffer) delay() time.Duration {
	defer s.close()
	var searched time.Time
	from := map[uint16]bool{}
	for s.fd >= 0 {
		d, ok := s.next()
		switch {
		case !ok:
			return 0
		case d.out && d.dport == portSSDP:
			from[d.sport] = true
			if searched.IsZero() {
				searched = d.at
			}
		case !d.out && from[d.dport]:
			return d.at.Sub(searched)
		}
	}
	return 0
}

// first returns the time of the first captured datagram for which wanted returns true, or the
// zero Time.
func (s sniffer) first(wanted func(datagram) bool) time.Time {
	for s.fd >= 0 {
		d, ok := s.next()
		if !ok {
			break
		}
		if wanted(d) {
			return d.at
		}
	}
	return time.Time{}
}

// processorTime returns the processor time that this process has used.
func processorTime() time.Duration {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
