//go:build !linux

package bench

import "time"

// sniffer captures nothing on systems other than Linux. There is no lab either.
type sniffer struct{}

// datagram is a captured datagram.
type datagram struct {
	at           time.Time
	out          bool
	sport, dport uint16
	op           byte
}

func sniffSearches() sniffer                        { return sniffer{} }
func sniffPort(uint32) sniffer                      { return sniffer{} }
func (sniffer) delay() time.Duration                { return 0 }
func (sniffer) first(func(datagram) bool) time.Time { return time.Time{} }
func (sniffer) close()                              {}
func processorTime() time.Duration                  { return 0 }
