package gateway

import "testing"

// A random external port leaves room for the whole range.
func TestRandomPortOfRange(t *testing.T) {
	for _, count := range []uint16{0, 1, 256} {
		s := &Spec{Count: count}
		for range 100_000 { // without room, one of 64 draws is too high: none of all is, once in 10^683
			if port := s.randomPort(); port < firstDynamicPort || int(port)+int(s.ports())-1 > lastDynamicPort {
				t.Fatalf("a range of %d from %d", count, port)
			}
		}
	}
}
