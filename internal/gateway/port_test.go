package gateway

import "testing"

// TestRandomPortOfRange checks that the range fits above a random external port.
func TestRandomPortOfRange(t *testing.T) {
	for _, count := range []uint16{0, 1, 256} {
		s := &Spec{Count: count}
		for range 100_000 { // without the limit, one of 64 draws would be too high; the chance that none is too high is 10^-683
			if port := s.randomPort(); port < firstDynamicPort || int(port)+int(s.ports())-1 > lastDynamicPort {
				t.Fatalf("a range of %d ports starts at %d", count, port)
			}
		}
	}
}
