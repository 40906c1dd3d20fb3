package forward_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/forward"
)

// While OnEvent blocks, calls go on, and the events that wait for it are bounded in
// number. The newest is among those that it gets.
func TestEventsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const changes = 5000
		m := newMemory()
		blocked := make(chan struct{})
		var got []forward.Event
		f := forwarder(t, forward.Config{OnEvent: func(e forward.Event) {
			<-blocked
			got = append(got, e)
		}}, m)
		defer f.Close()
		mapping, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for i := range changes {
			m.set(func() { m.external = netip.AddrFrom4([4]byte{45, 45, byte(i >> 8), byte(i)}) })
			if err := mapping.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		close(blocked)
		synctest.Wait()
		if n := len(got); n == 0 || n > changes/2 {
			t.Fatalf("%d changes while OnEvent blocked, and %d events afterwards; want a bounded number", changes, n)
		}
		if last := got[len(got)-1]; len(last.Grants) != 1 || last.Grants[0].External != mapping.External().AddrPort {
			t.Errorf("the last event says %v, the mapping is %v", last.Grants, mapping)
		}
	})
}
