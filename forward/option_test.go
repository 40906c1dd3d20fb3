package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// TestContradictoryOptions checks that contradictory options fail, and that the error
// names valid ones.
func TestContradictoryOptions(t *testing.T) {
	host := netip.MustParseAddrPort("192.168.1.9:81")
	f := newForwarder(t, forward.Config{}, newFakeGateway())
	defer f.Close()
	for want, opts := range map[string][]forward.Option{
		"TCP(80) and To(192.168.1.9:81) name two internal ports: to forward external port 80 to 192.168.1.9:81, use External(80) and To(192.168.1.9:81)":  {forward.TCP(80), forward.To(host)},
		"Both(80) and To(192.168.1.9:81) name two internal ports: to forward external port 80 to 192.168.1.9:81, use External(80) and To(192.168.1.9:81)": {forward.To(host), forward.Both(80)},
		"TCP(81) and Ports(80, 90) name two internal ports":                                                      {forward.TCP(81), forward.Ports(80, 90)},
		"Ports(90, 80) is not a range of ports: want a first port above 0, and a last port that is not below it": {forward.Ports(90, 80)},
		"Ports(0, 80) is not a range of ports: want a first port above 0, and a last port that is not below it":  {forward.Ports(0, 80)},
		"Ports(1000, 1256) has more than 256 ports: enable several ranges":                                       {forward.Ports(1000, 1256)},
		"the range ends above port 65535":                                                                        {forward.Ports(1000, 1009), forward.External(65530)},
		"SamePort and Ports exclude each other":                                                                  {forward.Ports(80, 81), forward.SamePort()},
		"the option Ports is given twice":                                                                        {forward.Ports(80, 81), forward.Ports(80, 81)},
		"the option Lifetime is given twice":                                                                     {forward.TCP(80), forward.Lifetime(time.Hour), forward.Lifetime(time.Hour)},
		"the option External is given twice":                                                                     {forward.TCP(80), forward.External(80), forward.External(81)},
		"the option ExternalAddr is given twice":                                                                 {forward.TCP(80), forward.ExternalAddr(externalAddr), forward.ExternalAddr(externalAddr)},
		"the option To is given twice":                                                                           {forward.To(host), forward.To(host)},
		"the option From is given twice":                                                                         {forward.TCP(80), forward.From(host), forward.From(host)},
		"the option Description is given twice":                                                                  {forward.TCP(80), forward.Description("a"), forward.Description("b")},
		"the option RenewEvery is given twice":                                                                   {forward.TCP(80), forward.RenewEvery(time.Hour), forward.RenewEvery(time.Hour)},
		"RenewEvery(10ms) is shorter than 1s":                                                                    {forward.TCP(80), forward.RenewEvery(10 * time.Millisecond)},
		"Once and RenewEvery exclude each other":                                                                 {forward.TCP(80), forward.Once(), forward.RenewEvery(time.Hour)},
		"Once and Lifetime(Forever) exclude each other: the mapping would never end":                             {forward.TCP(80), forward.Lifetime(forward.Forever), forward.Once()},
		"OnChange without a function":                                                                            {forward.TCP(80), forward.OnChange(nil)},
		"ExternalAddr without an address":                                                                        {forward.TCP(80), forward.ExternalAddr(netip.Addr{})},
	} {
		_, err := f.Enable(t.Context(), opts...)
		if !errors.Is(err, backends.ErrInvalid) || err.Error() != "forward: invalid request: "+want {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := f.Enable(t.Context(), forward.External(80), forward.To(netip.MustParseAddrPort("192.0.2.10:81"))); err != nil {
		t.Errorf("the options that the error recommends: %v", err)
	}
}

// TestRenewEvery checks that RenewEvery renews earlier than at half of the lifetime, and
// never later.
func TestRenewEvery(t *testing.T) {
	for interval, want := range map[time.Duration]int{10 * time.Minute: 12, 10 * time.Hour: 3} {
		synctest.Test(t, func(t *testing.T) {
			gw := newFakeGateway()
			gw.maxLifetime = time.Hour
			f := newForwarder(t, forward.Config{}, gw)
			defer f.Close()
			m, err := f.Enable(t.Context(), forward.TCP(8080), forward.RenewEvery(interval))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2*time.Hour + time.Second)
			if n := len(gw.takeCalls()) - 1; n != want {
				t.Errorf("%d renewals in two hours every %v, want %d", n, interval, want)
			}
			if err := m.Refresh(t.Context(), forward.RenewEvery(time.Minute)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10*time.Minute + time.Second)
			if n := len(gw.takeCalls()) - 1; n != 10 {
				t.Errorf("%d renewals in ten minutes after Refresh", n)
			}
		})
	}
}

// TestExternalAddr checks that Exact refuses a gateway that grants another external
// address.
func TestExternalAddr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, other := newFakeGateway(), netip.MustParseAddr("45.45.45.2")
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.ExternalAddr(other), forward.Exact()); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("another external address: %v", err)
		}
		if len(gw.live()) != 0 {
			t.Errorf("the gateway has %v", gw.rows())
		}
		for _, opts := range [][]forward.Option{
			{forward.TCP(8080), forward.ExternalAddr(other)}, {forward.TCP(9090), forward.ExternalAddr(externalAddr), forward.Exact()},
		} {
			if _, err := f.Enable(t.Context(), opts...); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestOnce checks that a mapping with Once expires without a renewal, and stays on the
// gateway after Close.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if entries, _ := f.Mappings(t.Context()); len(entries) != 1 {
			t.Errorf("entries %v", entries)
		}
		time.Sleep(2 * time.Hour)
		if entries, _ := f.Mappings(t.Context()); len(entries) != 0 || len(gw.takeCalls()) != 1 {
			t.Errorf("entries %v after its lifetime", entries)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8081), forward.Once()); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil || len(gw.live()) != 1 {
			t.Errorf("Close: %v; the gateway has %v, want the mapping with Once", err, gw.live())
		}
	})
}

// TestOnceRefreshed checks that a mapping with Once expires without a renewal, and that
// Refresh creates it again.
func TestOnceRefreshed(t *testing.T) {
	for name, refresh := range map[string]func(context.Context, *forward.Forwarder, *forward.Mapping) error{
		"without selectors": func(ctx context.Context, f *forward.Forwarder, _ *forward.Mapping) error { return f.Refresh(ctx) },
		"by port": func(ctx context.Context, f *forward.Forwarder, _ *forward.Mapping) error {
			return f.Refresh(ctx, forward.TCP(8080))
		},
		"by handle": func(ctx context.Context, _ *forward.Forwarder, m *forward.Mapping) error { return m.Refresh(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				if state := m.Grants(); len(state) != 0 || len(gw.live()) != 0 {
					t.Fatalf("after one hour: %v, the gateway has %v; want it expired", state, gw.live())
				}
				if err := refresh(t.Context(), f, m); err != nil {
					t.Fatalf("Refresh after expiry: %v; want the mapping granted again", err)
				}
				if live := gw.live(); len(live) != 1 || m.External().AddrPort != live[0].External || live[0].Lifetime != time.Minute {
					t.Errorf("Refresh returned nil; the handle has %v, the gateway has %v", m, live)
				}
				time.Sleep(time.Hour)
				if live := gw.live(); len(live) != 0 {
					t.Errorf("one hour after Refresh the gateway has %v; want no renewal", live)
				}
			})
		})
	}
}

// TestOnceReplaced checks that a mapping with Once that has expired and was replaced can be
// closed after its Forwarder.
func TestOnceReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForwarder(t, forward.Config{}, newFakeGateway())
		enable := func() *forward.Mapping {
			m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		replaced := enable()
		time.Sleep(time.Hour)
		enable()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := replaced.Close(); err != nil {
			t.Errorf("Close of the replaced mapping: %v", err)
		}
	})
}

// TestOnceConcurrent checks that two concurrent calls can enable the same mapping with
// Once.
func TestOnceConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newSlowGateway(t, map[string]time.Duration{"map udp": time.Second})
		errs := make(chan error)
		for range 2 {
			go func() {
				_, err := f.Enable(t.Context(), forward.Both(8080), forward.Once())
				errs <- err
			}()
			time.Sleep(500 * time.Millisecond)
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("Enable: %v", err)
			}
		}
		if live := d.live(); len(live) != 2 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestOnceClosedHalfGranted closes the Forwarder when one protocol of a mapping with Once
// is granted. That protocol is deleted, because Enable fails.
func TestOnceClosedHalfGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newSlowGateway(t, map[string]time.Duration{"map udp": time.Second})
		failed := make(chan error)
		go func() {
			_, err := f.Enable(t.Context(), forward.Both(8080), forward.Once())
			failed <- err
		}()
		time.Sleep(500 * time.Millisecond)
		closed := f.Close()
		if err := <-failed; err == nil {
			t.Error("Enable succeeded")
		}
		if live := d.live(); closed != nil || len(live) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", closed, live)
		}
	})
}

// TestOnceCloseDuringRequest closes the Forwarder during a Refresh of a mapping with Once.
// The requested mapping is deleted, because the caller does not receive it.
func TestOnceCloseDuringRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		mapping, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once())
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "map" {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		refreshed := make(chan error)
		go func() { refreshed <- mapping.Refresh(t.Context(), forward.External(9090)) }()
		synctest.Wait()
		if err := f.Close(); err != nil {
			t.Error("Close:", err)
		}
		if err := <-refreshed; !errors.Is(err, forward.ErrClosed) {
			t.Error("Refresh:", err)
		}
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestOnceCloseDuringSecondRequest is TestOnceCloseDuringRequest with one protocol
// granted and the request for the other in flight.
func TestOnceCloseDuringSecondRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		mapping, err := f.Enable(t.Context(), forward.Both(8080), forward.Once(), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute) // the mapping expires
		gw.set(func() {
			gw.fail = func(op string, p backends.Protocol, _ uint16) error {
				if op == "map" && p == backends.UDP {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		refreshed := make(chan error)
		go func() { refreshed <- mapping.Refresh(t.Context()) }()
		synctest.Wait()
		if err := f.Close(); err != nil {
			t.Error("Close:", err)
		}
		if err := <-refreshed; !errors.Is(err, forward.ErrClosed) {
			t.Error("Refresh:", err)
		}
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestOnceCloseKeepsPendingDelete requests, with Once, a mapping whose deletion got no
// reply. When the Forwarder with that mapping is closed, the pending deletion must be kept.
func TestOnceCloseKeepsPendingDelete(t *testing.T) {
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			gw := newFakeGateway()
			f, other := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
			once, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(2*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Minute) // the mapping expires
			holder := f
			if shared {
				holder = other
			}
			mapping := enable8080(t, holder)
			gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
			if err := mapping.Close(); err == nil {
				t.Fatal("Close returned nil")
			}
			gw.set(func() {
				gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
					if op == "map" {
						time.Sleep(500 * time.Millisecond)
					}
					return nil
				}
			})
			refreshed := make(chan error)
			go func() { refreshed <- once.Refresh(t.Context()) }()
			synctest.Wait()
			if err := f.Close(); err != nil {
				t.Error("Close:", err)
			}
			<-refreshed
			time.Sleep(time.Minute)
			if err := other.Close(); err != nil || len(gw.live()) > 0 {
				t.Errorf("Close of the other Forwarder returned %v, and the gateway has %v", err, gw.live())
			}
		})
	}
}

// TestOnceSharesRegrantedEntry checks that Close of a mapping that shares an entry with a
// mapping with Once deletes the entry, even if it expired and was granted again meanwhile.
func TestOnceSharesRegrantedEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		renewed, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute), forward.Once()); err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		time.Sleep(3 * time.Minute)
		gw.set(func() { gw.fail = nil })
		time.Sleep(2 * time.Minute)
		if renewed.External().Port() != 8080 {
			t.Fatal("the mapping was not granted again")
		}
		if err := renewed.Close(); err != nil || len(gw.live()) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", err, gw.live())
		}
	})
}

// TestOnceExpired checks that an expired mapping with Once does not conflict with later
// ones, neither before nor after Close.
func TestOnceExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once()); err != nil {
			t.Errorf("after one hour: %v", err)
		}
		_ = f.Close()
		other := newForwarder(t, forward.Config{}, gw)
		defer other.Close()
		if _, err := other.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour)); err != nil {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestRange checks that the ports of a range are one unit: the external ports are
// consecutive like the internal ones, or none is granted.
func TestRange(t *testing.T) {
	for name, c := range map[string]struct {
		opts  []forward.Option
		taken []uint16
		want  []string // rows of the gateway; nil: random ports
		text  string
	}{
		"same ports":           {opts: []forward.Option{forward.Ports(8000, 8002)}, want: []string{"tcp 8000→8000", "tcp 8001→8001", "tcp 8002→8002"}, text: "tcp 45.45.45.1:8000-8002 → 8000-8002"},
		"other external ports": {opts: []forward.Option{forward.UDP(0), forward.Ports(8000, 8001), forward.External(9000)}, want: []string{"udp 9000→8000", "udp 9001→8001"}, text: "udp 45.45.45.1:9000-9001 → 8000-8001"},
		"both protocols":       {opts: []forward.Option{forward.Both(8000), forward.Ports(8000, 8001)}, want: []string{"tcp 8000→8000", "tcp 8001→8001", "udp 8000→8000", "udp 8001→8001"}, text: "tcp+udp 45.45.45.1:8000-8001 → 8000-8001"},
		"one port":             {opts: []forward.Option{forward.Ports(8000, 8000)}, want: []string{"tcp 8000→8000"}, text: "tcp 45.45.45.1:8000 → 8000"},
		"first port taken":     {opts: []forward.Option{forward.Ports(8000, 8001)}, taken: []uint16{8000}, want: []string{"tcp 8001→8000", "tcp 8002→8001"}, text: "tcp 45.45.45.1:8001-8002 → 8000-8001"},
		"other port taken":     {opts: []forward.Option{forward.Ports(8000, 8002)}, taken: []uint16{8001}},
		"no free port above":   {opts: []forward.Option{forward.Ports(65534, 65535)}, taken: []uint16{65534}},
		"last ports":           {opts: []forward.Option{forward.Ports(65534, 65535)}, want: []string{"tcp 65534→65534", "tcp 65535→65535"}, text: "tcp 45.45.45.1:65534-65535 → 65534-65535"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				for _, port := range c.taken {
					gw.taken[port] = true
				}
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				m, err := f.Enable(t.Context(), c.opts...)
				if err != nil {
					t.Fatal(err)
				}
				grants := m.Grants()
				for i, g := range grants {
					if i > 0 && (g.External.Port() <= grants[0].External.Port() && g.Internal.Port() != grants[0].Internal.Port() ||
						g.External.Port()-grants[0].External.Port() != g.Internal.Port()-grants[0].Internal.Port()) {
						t.Errorf("not a range: %v", grants)
					}
				}
				if c.want != nil && (!slices.Equal(gw.rows(), c.want) || m.String() != c.text) {
					t.Errorf("the gateway has %v, %v, want %v, %q", gw.rows(), m, c.want, c.text)
				}
				time.Sleep(24 * time.Hour)
				if len(gw.live()) != len(grants) {
					t.Errorf("after one day the gateway has %v", gw.rows())
				}
				if err := m.Close(); err != nil || len(gw.live()) != 0 {
					t.Errorf("Close: %v, the gateway has %v", err, gw.rows())
				}
			})
		})
	}
}

// TestRangeAtomic checks that no port of a range remains if one of them is refused.
func TestRangeAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		gw.taken[8002] = true
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		_, err := f.Enable(t.Context(), forward.Ports(8000, 8003), forward.Exact())
		if !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Enable: %v", err)
		}
		time.Sleep(time.Second)
		if len(gw.live()) != 0 {
			t.Errorf("the gateway has %v", gw.rows())
		}
	})
}

// TestRangeRenewalMismatch checks that a range that loses one of its ports at a renewal
// is requested again as a whole.
func TestRangeRenewalMismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		gw.maxLifetime = time.Hour
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.Ports(8000, 8001))
		if err != nil {
			t.Fatal(err)
		}
		gw.mu.Lock()
		gw.taken[8001] = true
		gw.mu.Unlock()
		time.Sleep(time.Hour)
		grants := m.Grants()
		if len(grants) != 2 || grants[1].External.Port() != grants[0].External.Port()+1 || len(gw.live()) != 2 {
			t.Errorf("%v, the gateway has %v", grants, gw.rows())
		}
	})
}

// TestRangesOverlap checks that different ranges of one program cannot share an internal
// port.
func TestRangesOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		first, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
		if err != nil {
			t.Fatal(err)
		}
		for name, opt := range map[string]forward.Option{
			"first port": forward.TCP(8000), "another port": forward.TCP(8002), "other range": forward.Ports(8003, 8004), "longer range": forward.Ports(8000, 8004),
		} {
			if _, err := f.Enable(t.Context(), opt); !errors.Is(err, backends.ErrConflict) {
				t.Errorf("%s: %v, want ErrConflict", name, err)
			}
		}
		second, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil || len(gw.live()) != 4 {
			t.Errorf("Close of one of two handles: %v, the gateway has %v", err, gw.rows())
		}
		if err := f.Disable(t.Context(), forward.Ports(8000, 8002)); !errors.Is(err, forward.ErrNoMapping) {
			t.Errorf("Disable of another range: %v", err)
		}
		if err := f.Disable(t.Context(), forward.Ports(8000, 8003)); err != nil || len(gw.live()) != 0 {
			t.Errorf("Disable: %v, the gateway has %v", err, gw.rows())
		}
		if err := second.Close(); err != nil {
			t.Error(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8002)); err != nil {
			t.Errorf("Enable after all are closed: %v", err)
		}
	})
}

// TestRangeAfterCrash checks that a range is taken over with its external ports after a
// crash. If only one of its ports is enabled again, the others are deleted.
func TestRangeAfterCrash(t *testing.T) {
	for name, c := range map[string]struct {
		opts []forward.Option
		want []string
	}{
		"the range": {[]forward.Option{forward.Ports(8000, 8001)}, []string{"tcp 9000→8000", "tcp 9001→8001"}},
		"one port":  {[]forward.Option{forward.TCP(8001)}, []string{"tcp 8001→8001"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, file := newFakeGateway(), filepath.Join(t.TempDir(), "state")
				f := newForwarder(t, forward.Config{StateFile: file}, gw)
				if _, err := f.Enable(t.Context(), forward.Ports(8000, 8001), forward.External(9000)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				f.Crash()
				f = newForwarder(t, forward.Config{StateFile: file}, gw)
				defer f.Close()
				if _, err := f.Enable(t.Context(), c.opts...); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if !slices.Equal(gw.rows(), c.want) {
					t.Errorf("the gateway has %v, want %v", gw.rows(), c.want)
				}
			})
		})
	}
}

// TestRangeDuringPendingDelete checks that a pending deletion of a range does not prevent
// another range. Its ports are deleted or taken over.
func TestRangeDuringPendingDelete(t *testing.T) {
	for name, opt := range map[string]forward.Option{
		"first port": forward.TCP(8000), "another port": forward.TCP(8001), "other range": forward.Ports(8001, 8002), "longer range": forward.Ports(8000, 8004),
	} {
		for _, kind := range []string{"natpmp", "upnp"} {
			t.Run(name+" by "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					gw := newFakeGateway()
					gw.name = kind
					f := newForwarder(t, forward.Config{}, gw)
					defer f.Close()
					first, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
					if err != nil {
						t.Fatal(err)
					}
					gw.set(func() {
						gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
							if op == "unmap" {
								return backends.ErrNoReply
							}
							return nil
						}
					})
					if err := first.Close(); !errors.Is(err, backends.ErrNoReply) {
						t.Errorf("Close: %v", err)
					}
					m, err := f.Enable(t.Context(), opt)
					if err != nil {
						t.Fatal(err)
					}
					gw.set(func() { gw.fail = nil })
					time.Sleep(5 * time.Minute)
					if rows := gw.rows(); len(rows) != len(m.Grants()) {
						t.Errorf("the gateway has %v, the mapping reports %v", rows, m.Grants())
					}
				})
			})
		}
	}
}

// TestRangeRestoredFromAnotherBackend checks that mappings that an earlier run created
// with another backend do not prevent a mapping.
func TestRangeRestoredFromAnotherBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, other, file := newFakeGateway(), newFakeGateway(), filepath.Join(t.TempDir(), "state")
		other.name = "other"
		f := newForwarder(t, forward.Config{StateFile: file}, other)
		if _, err := f.Enable(t.Context(), forward.Ports(8000, 8003)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		f.Crash()
		f = newForwarder(t, forward.Config{StateFile: file}, gw, other)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8001)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if rows := append(gw.rows(), other.rows()...); !slices.Equal(rows, []string{"tcp 8001→8001"}) {
			t.Errorf("the gateways have %v", rows)
		}
	})
}
