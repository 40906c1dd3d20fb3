package lab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Cable is a cable with faults that the test selects. It loses, duplicates, delays and
// reorders frames, and it can be cut after a given number of the host's frames. Every
// frame passes through the test process.
type Cable struct {
	ends [2]*os.File // packet sockets: at the host's end and at the switch's end
	wg   sync.WaitGroup

	mu      sync.Mutex
	line    Line
	rngs    [2]*rand.Rand // one for each direction, so that the seed determines the faults of the nth frame in a direction
	blocks  [2]block      // for Line.OneIn, one for each direction
	lost    [2]int        // frames lost in each direction since Set
	limit   int           // how many of the host's frames pass before the cut; negative: no cut
	passed  int
	severed chan struct{} // closed when the first frame is lost to the cut
}

// Line describes the faults of a cable. They apply to every frame, in both directions.
// The zero value is a cable without faults. Loss, Duplicate and Reorder are probabilities
// from 0 to 1.
type Line struct {
	Loss      float64       // the frame is lost
	Duplicate float64       // the frame arrives twice
	Reorder   float64       // the frame is delayed by 20 ms, so that later frames overtake it
	Delay     time.Duration // the delay of every frame
	Jitter    time.Duration // the upper bound of an additional random delay
	Seed      uint64

	// OneIn, if it is 2 or more, loses exactly one of every OneIn consecutive frames in
	// each direction. The seed selects which one. So the share of lost frames does not
	// depend on chance, and at most two frames in a row are lost.
	OneIn int
	// Peer, if it is valid, limits the faults to TCP and UDP between the host and this
	// IPv4 address, and to multicast of the host. All other frames pass unchanged.
	Peer netip.Addr
}

// block is a sequence of consecutive frames of which exactly one is lost.
type block struct {
	frames int // how many frames of the block have been counted
	lost   int // the index of the frame that is lost
}

// losesNext counts a frame and reports whether it is the lost frame of its block.
func (b *block) losesNext(size int, rng *rand.Rand) bool {
	if b.frames%size == 0 {
		b.frames, b.lost = 0, rng.IntN(size)
	}
	b.frames++
	return b.frames-1 == b.lost
}

// reorderDelay is how long a reordered frame is delayed, so that later frames overtake
// it.
const reorderDelay = 20 * time.Millisecond

// The directions of a frame, named after the end at which it enters the cable.
const (
	fromHost = iota
	fromSwitch
)

// JoinByCable is [HomeNet.Join] with a cable that the test controls.
func (home *HomeNet) JoinByCable(name, addr string) (*Host, *Cable) {
	t := home.lab.t
	t.Helper()
	h := home.lab.Host(name)
	c := home.Switch.PlugCable(h.Port("eth0", addr))
	h.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	return h, c
}

// PlugCable is [Switch.Plug] with a cable that the test controls. The cable is removed
// when the test ends.
func (s *Switch) PlugCable(p Port) *Cable {
	l := s.host.lab
	l.t.Helper()
	outer := fmt.Sprintf("cable%d", s.ports+1)
	l.Connect(p, s.host.Port(outer))
	inner := fmt.Sprintf("cable%di", s.ports+1)
	s.Plug(s.host.Port(inner))
	for _, name := range []string{outer, inner} { // these two ports need no addresses
		s.host.Sysctl(l.t, "net.ipv6.conf."+name+".disable_ipv6", "1")
	}
	c := &Cable{limit: -1, severed: make(chan struct{})}
	c.Set(Line{})
	for i, name := range []string{outer, inner} {
		end, err := packetSocket(s.host.netns, name)
		if err != nil {
			c.close()
			l.t.Fatalf("lab: cable: %v", err)
		}
		c.ends[i] = end
	}
	for direction := range c.ends {
		c.wg.Go(func() { c.relay(direction) })
	}
	l.t.Cleanup(c.close)
	return c
}

// Set applies the faults of line from the next frame on.
func (c *Cable) Set(line Line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = line
	c.rngs = [2]*rand.Rand{rand.New(rand.NewPCG(line.Seed, fromHost)), rand.New(rand.NewPCG(line.Seed, fromSwitch))}
	c.blocks, c.lost = [2]block{}, [2]int{}
}

// Lost returns how many frames the cable has lost since Set, from the host and to the
// host.
func (c *Cable) Lost() (fromHost, toHost int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[0], c.lost[1]
}

// CutAfter lets n more frames of the host's traffic pass, and then no frame at all. It
// counts IPv4 frames from the host and IPv4 frames that are addressed to the host alone.
// It does not count ARP, IGMP, or frames that the switch floods.
func (c *Cable) CutAfter(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit, c.passed, c.severed = n, 0, make(chan struct{})
}

// Plug repairs a cut cable. It returns how many counted frames have passed since
// CutAfter.
func (c *Cable) Plug() (passed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = -1
	return c.passed
}

// Severed returns a channel that is closed when the first frame is lost to the cut of the
// last CutAfter.
func (c *Cable) Severed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.severed
}

// IsSevered reports whether a frame was lost to the cut of the last CutAfter.
func (c *Cable) IsSevered() bool {
	select {
	case <-c.Severed():
		return true
	default:
		return false
	}
}

// relay copies frames from one end to the other until the cable is closed.
func (c *Cable) relay(direction int) {
	in, out := c.ends[direction], c.ends[1-direction]
	buf := make([]byte, frameBufferSize)
	for {
		n, err := in.Read(buf)
		if isClosed(err) {
			return
		}
		if err != nil {
			continue // the interface went down; the socket reports this once
		}
		if n < frameHeaderSize {
			continue
		}
		for _, delay := range c.delays(direction, buf[frameHeaderSize:n]) {
			if delay == 0 {
				_, _ = out.Write(buf[:n])
				continue
			}
			c.writeLater(delay, out, append([]byte(nil), buf[:n]...))
		}
	}
}

// writeLater writes a frame after a delay. The delay is always short.
func (c *Cable) writeLater(delay time.Duration, out *os.File, frame []byte) {
	c.wg.Add(1)
	time.AfterFunc(delay, func() {
		defer c.wg.Done()
		_, _ = out.Write(frame)
	})
}

// delays returns the delay of each copy of the frame that the cable delivers; none if the
// frame is lost.
func (c *Cable) delays(direction int, frame []byte) []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut(direction, frame) {
		return nil
	}
	rng, line := c.rngs[direction], c.line
	if line.Peer.IsValid() && !isPeerTraffic(line.Peer, direction, frame) {
		return []time.Duration{0}
	}
	// Draw all random numbers for every frame, so that a change of one probability does
	// not change the outcome of the others.
	drop, duplicate, reorder := rng.Float64() < line.Loss, rng.Float64() < line.Duplicate, rng.Float64() < line.Reorder
	delay := line.Delay + time.Duration(rng.Float64()*float64(line.Jitter))
	if line.OneIn > 1 && c.blocks[direction].losesNext(line.OneIn, rng) {
		drop = true
	}
	if drop {
		c.lost[direction]++
		return nil
	}
	if reorder {
		delay += reorderDelay
	}
	if duplicate {
		return []time.Duration{delay, delay}
	}
	return []time.Duration{delay}
}

// isCut counts a frame and reports whether it is lost to the cut.
func (c *Cable) isCut(direction int, frame []byte) bool {
	if c.limit < 0 {
		return false
	}
	if !isHostTraffic(direction, frame) {
		return c.passed >= c.limit
	}
	if c.passed < c.limit {
		c.passed++
		return false
	}
	select {
	case <-c.severed:
	default:
		close(c.severed)
	}
	return true
}

// isPeerTraffic reports whether a frame is TCP or UDP over IPv4 between the host and the
// peer, or multicast of the host.
func isPeerTraffic(peer netip.Addr, direction int, frame []byte) bool {
	const etherHeader, minIP, ipProtocol, ipSource, ipDestination, tcp, udp = 14, 20, 9, 12, 16, 6, 17
	if len(frame) < etherHeader+minIP || frame[12] != 0x08 || frame[13] != 0x00 {
		return false
	}
	ip := frame[etherHeader:]
	if p := ip[ipProtocol]; p != tcp && p != udp {
		return false
	}
	source, destination := netip.AddrFrom4([4]byte(ip[ipSource:])), netip.AddrFrom4([4]byte(ip[ipDestination:]))
	return source == peer || destination == peer || direction == fromHost && destination.IsMulticast()
}

// isHostTraffic reports whether CutAfter counts the frame.
func isHostTraffic(direction int, frame []byte) bool {
	const etherHeader, ipProtocol, igmp = 14, 9, 2
	if len(frame) <= etherHeader+ipProtocol || frame[12] != 0x08 || frame[13] != 0x00 {
		return false
	}
	if frame[etherHeader+ipProtocol] == igmp {
		return false
	}
	multicast := frame[0]&1 != 0
	return direction == fromHost || !multicast
}

// close stops the goroutines that relay frames and waits for them.
func (c *Cable) close() {
	for _, end := range c.ends {
		if end != nil {
			end.Close()
		}
	}
	c.wg.Wait()
}
