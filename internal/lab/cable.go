package lab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Cable is a cable that does to frames what a test wants: it loses, doubles,
// delays and reorders them, and can be cut after so many of a conversation.
// Every frame passes through the test process.
type Cable struct {
	ends [2]*os.File // packet sockets: that of the host, that of the switch
	wg   sync.WaitGroup

	mu      sync.Mutex
	line    Line
	rngs    [2]*rand.Rand // one each way, so that a seed decides about the nth frame of a direction
	blocks  [2]block      // of Line.OneIn, one each way
	lost    [2]int        // frames that the line has lost, since Set
	limit   int           // of the conversation, how many frames pass; negative: all
	passed  int
	severed chan struct{} // closed when a frame has met the cut
}

// Line is what a cable does to each frame, in both directions. The zero value
// is a good cable. Loss, Duplicate and Reorder are chances from 0 to 1.
type Line struct {
	Loss      float64       // never arrives
	Duplicate float64       // arrives twice
	Reorder   float64       // is held back for 20 ms, and overtaken
	Delay     time.Duration // what every frame takes
	Jitter    time.Duration // up to so much more
	Seed      uint64

	// OneIn, if it is 2 or more, makes the line lose exactly one of every OneIn
	// consecutive frames, each way. The seed selects which one. So the share of lost
	// frames does not depend on chance, and at most two frames in a row are lost.
	OneIn int
	// Peer, if it is valid, limits the line to TCP and UDP between the host and this
	// IPv4 address, and to multicast of the host. The line carries all other frames
	// unchanged.
	Peer netip.Addr
}

// block is a number of consecutive frames, of which exactly one is lost.
type block struct {
	frames int // that have come so far
	lost   int // the index of the one that is lost
}

// loses counts a frame, and reports whether it is the one of its block that is
// lost.
func (b *block) losesNext(size int, rng *rand.Rand) bool {
	if b.frames%size == 0 {
		b.frames, b.lost = 0, rng.IntN(size)
	}
	b.frames++
	return b.frames-1 == b.lost
}

// held is for how long a frame is kept back that others are to overtake.
const reorderDelay = 20 * time.Millisecond

// The directions, by the end that a frame comes in at.
const (
	fromHost = iota
	fromSwitch
)

// JoinByCable is Join by a cable that the test has in hand.
func (home *HomeNet) JoinByCable(name, addr string) (*Host, *Cable) {
	t := home.lab.t
	t.Helper()
	h := home.lab.Host(name)
	c := home.Switch.PlugCable(h.Port("eth0", addr))
	h.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	return h, c
}

// PlugCable is Plug with a cable that the test has in hand, until it ends.
func (s *Switch) PlugCable(p Port) *Cable {
	l := s.host.lab
	l.t.Helper()
	outer := fmt.Sprintf("cable%d", s.ports+1)
	l.Connect(p, s.host.Port(outer))
	inner := fmt.Sprintf("cable%di", s.ports+1)
	s.Plug(s.host.Port(inner))
	for _, name := range []string{outer, inner} { // nobody lives there
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

// Set makes the cable a line of this kind from the next frame on.
func (c *Cable) Set(line Line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = line
	c.rngs = [2]*rand.Rand{rand.New(rand.NewPCG(line.Seed, fromHost)), rand.New(rand.NewPCG(line.Seed, fromSwitch))}
	c.blocks, c.lost = [2]block{}, [2]int{}
}

// Lost returns how many frames the line has lost since Set, from the host and to
// it.
func (c *Cable) Lost() (fromHost, toHost int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[0], c.lost[1]
}

// CutAfter lets n more frames of the host's conversations pass, then none at
// all. Counted is IPv4 from the host, and what comes to the host alone; neither
// ARP nor IGMP, nor what a switch floods.
func (c *Cable) CutAfter(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit, c.passed, c.severed = n, 0, make(chan struct{})
}

// Plug ends a cut. It returns how many frames had passed since CutAfter.
func (c *Cable) Plug() (passed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = -1
	return c.passed
}

// Severed returns a channel that is closed when a frame has met the last
// CutAfter, and been lost.
func (c *Cable) Severed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.severed
}

// IsSevered reports whether a frame has met the last CutAfter.
func (c *Cable) IsSevered() bool {
	select {
	case <-c.Severed():
		return true
	default:
		return false
	}
}

// carry takes frames from one end to the other until the cable is closed.
func (c *Cable) relay(direction int) {
	in, out := c.ends[direction], c.ends[1-direction]
	buf := make([]byte, frameBufferSize)
	for {
		n, err := in.Read(buf)
		if isClosed(err) {
			return
		}
		if err != nil {
			continue // the interface went down, which is told once
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

// later writes a frame after a delay, which is always short.
func (c *Cable) writeLater(delay time.Duration, out *os.File, frame []byte) {
	c.wg.Add(1)
	time.AfterFunc(delay, func() {
		defer c.wg.Done()
		_, _ = out.Write(frame)
	})
}

// fate is the delay of each copy of a frame that arrives.
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
	// All dice are thrown for every frame, so that one chance does not change
	// what comes of the others.
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

// isCut counts a frame, and reports whether it meets the cut.
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

// isWith reports whether a frame is TCP or UDP over IPv4 between the host and a
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

// isTalk reports whether a frame is part of a conversation of the host.
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

// close ends what carries the frames, and waits for it.
func (c *Cable) close() {
	for _, end := range c.ends {
		if end != nil {
			end.Close()
		}
	}
	c.wg.Wait()
}
