package lab

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"testing"
)

// Packet is an IP packet that passed an interface.
type Packet struct {
	Out      bool // the host sent it
	Protocol byte // the number of the transport protocol: ProtocolTCP, …
	From, To netip.AddrPort
	Payload  []byte // of TCP and UDP
}

// The transport protocols of packets.
const (
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
)

// Capture records the packets that pass an interface of a host, in both directions. It leaves
// out what keeps a network working: ARP, neighbor discovery, router advertisements, IGMP and MLD.
type Capture struct {
	t    testing.TB
	name string

	mu      sync.Mutex
	socket  *os.File
	packets []Packet
}

// Capture begins to record the packets of an interface, until the test ends.
func (h *Host) Capture(t testing.TB, port string) *Capture {
	t.Helper()
	c := &Capture{t: t, name: h.name + ", " + port}
	var err error
	if c.socket, err = captureSocket(h.netns, port); err != nil {
		t.Fatalf("lab: capture: %v", err)
	}
	t.Cleanup(func() { _ = c.socket.Close() })
	return c
}

// Packets returns the packets since Capture or the last Reset. It fails the test if packets
// were lost because Packets was called too rarely.
func (c *Capture) Packets() []Packet {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read()
	return append([]Packet(nil), c.packets...)
}

// Reset forgets all packets and returns them.
func (c *Capture) Reset() []Packet {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read()
	all := c.packets
	c.packets = nil
	return all
}

// read reads the packets that have arrived at the socket.
func (c *Capture) read() {
	c.t.Helper()
	lost, err := readCaptured(c.socket, func(out bool, packet []byte) {
		if p, ok := parsePacket(packet); ok {
			p.Out = out
			c.packets = append(c.packets, p)
		}
	})
	if err != nil {
		c.t.Errorf("lab: capture of %s: %v", c.name, err)
	}
	if lost > 0 {
		c.t.Errorf("lab: capture of %s: %d packets were lost", c.name, lost)
	}
}

// parsePacket reads the headers of an IP packet. It returns false for packets that are not
// recorded.
func parsePacket(b []byte) (p Packet, ok bool) {
	const igmp, minIPv4, ipv6Header = 2, 20, 40
	var source, destination netip.Addr
	switch {
	case len(b) >= minIPv4 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		p.Protocol = b[9]
		source, destination = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[int(b[0]&15)*4 : max(int(b[0]&15)*4, min(len(b), int(binary.BigEndian.Uint16(b[2:]))))]
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		p.Protocol = b[6]
		source, destination = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[ipv6Header:]
	default:
		return Packet{}, false
	}
	var sourcePort, destinationPort uint16
	switch {
	case p.Protocol == igmp, p.Protocol == 0: // 0: the options before MLD
		return Packet{}, false
	case p.Protocol == ProtocolICMPv6 && len(b) > 0 && b[0] >= 130: // MLD and neighbor discovery
		return Packet{}, false
	case p.Protocol == ProtocolTCP && len(b) >= 20, p.Protocol == ProtocolUDP && len(b) >= 8:
		sourcePort, destinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		header := 8
		if p.Protocol == ProtocolTCP {
			header = int(b[12]>>4) * 4
		}
		p.Payload = append(p.Payload, b[min(header, len(b)):]...)
	}
	p.From, p.To = netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(destination, destinationPort)
	return p, true
}
