package pcp

import (
	"net/netip"
	"testing"
)

// TestSchedule checks the waits of RFC 6887, section 8.1.1, which vary by up to one
// tenth.
func TestSchedule(t *testing.T) {
	c, err := NewClient(Config{Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Transmissions: 13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 100 {
		wait := c.schedule(DefaultFirstWait)
		before := DefaultFirstWait / 2
		for n := range 13 {
			got, more := wait(n)
			want := min(2*before, defaultLongestWait)
			if !more || got < want*9/10 || got > want*11/10 {
				t.Fatalf("wait %d is %v after %v", n, got, before)
			}
			before = got
		}
		if _, more := wait(13); more {
			t.Fatal("a fourteenth request is sent")
		}
	}
}
