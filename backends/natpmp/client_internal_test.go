package natpmp

import (
	"net/netip"
	"testing"
	"time"
)

// TestSchedule checks the waits of RFC 6886, section 3.1.
func TestSchedule(t *testing.T) {
	c, err := NewClient(Config{Gateway: netip.MustParseAddrPort("192.0.2.1:5351")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var total time.Duration
	for n, want := range []time.Duration{
		250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
		8 * time.Second, 16 * time.Second, 32 * time.Second, 64 * time.Second,
	} {
		if got, more := c.wait(n); got != want || !more {
			t.Errorf("wait %d is %v, %v; want %v", n, got, more, want)
		}
		total += want
	}
	if _, more := c.wait(9); more {
		t.Error("a tenth request is sent")
	}
	if want := 127750 * time.Millisecond; total != want {
		t.Errorf("fails after %v, want %v", total, want)
	}
	c.config.LongestWait = 2 * time.Second
	for n, want := range map[int]time.Duration{0: 250 * time.Millisecond, 3: 2 * time.Second, 8: 2 * time.Second} {
		if got, more := c.wait(n); got != want || !more {
			t.Errorf("with LongestWait, wait %d is %v, %v; want %v", n, got, more, want)
		}
	}
	c.config.LongestWait = 0
	c.config.Transmissions = 1000
	if got, _ := c.wait(999); got != time.Hour {
		t.Errorf("wait 999 is %v, want one hour", got)
	}
}
