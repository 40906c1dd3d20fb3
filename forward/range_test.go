package forward_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// rows returns what the gateway forwards, in order, as "udp 9000→8000".
func (m *memory) rows() []string {
	out := []string{}
	for _, g := range m.live() {
		out = append(out, fmt.Sprintf("%v %d→%d", g.Protocol, g.External.Port(), g.Internal.Port()))
	}
	slices.Sort(out)
	return out
}

// A range is one unit: its ports follow each other outside as they do inside, or nothing
// is granted.
func TestRange(t *testing.T) {
	for name, c := range map[string]struct {
		opts  []forward.Option
		taken []uint16
		want  []string // of the gateway; nil: random ports
		text  string
	}{
		"as inside":       {opts: []forward.Option{forward.Ports(8000, 8002)}, want: []string{"tcp 8000→8000", "tcp 8001→8001", "tcp 8002→8002"}, text: "tcp 45.45.45.1:8000-8002 → 8000-8002"},
		"elsewhere":       {opts: []forward.Option{forward.UDP(0), forward.Ports(8000, 8001), forward.External(9000)}, want: []string{"udp 9000→8000", "udp 9001→8001"}, text: "udp 45.45.45.1:9000-9001 → 8000-8001"},
		"both protocols":  {opts: []forward.Option{forward.Both(8000), forward.Ports(8000, 8001)}, want: []string{"tcp 8000→8000", "tcp 8001→8001", "udp 8000→8000", "udp 8001→8001"}, text: "tcp+udp 45.45.45.1:8000-8001 → 8000-8001"},
		"one port":        {opts: []forward.Option{forward.Ports(8000, 8000)}, want: []string{"tcp 8000→8000"}, text: "tcp 45.45.45.1:8000 → 8000"},
		"the first taken": {opts: []forward.Option{forward.Ports(8000, 8001)}, taken: []uint16{8000}, want: []string{"tcp 8001→8000", "tcp 8002→8001"}, text: "tcp 45.45.45.1:8001-8002 → 8000-8001"},
		"another taken":   {opts: []forward.Option{forward.Ports(8000, 8002)}, taken: []uint16{8001}},
		"no room":         {opts: []forward.Option{forward.Ports(65534, 65535)}, taken: []uint16{65534}},
		"the last ones":   {opts: []forward.Option{forward.Ports(65534, 65535)}, want: []string{"tcp 65534→65534", "tcp 65535→65535"}, text: "tcp 45.45.45.1:65534-65535 → 65534-65535"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				for _, port := range c.taken {
					m.taken[port] = true
				}
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				got, err := f.Enable(t.Context(), c.opts...)
				if err != nil {
					t.Fatal(err)
				}
				grants := got.Grants()
				for i, g := range grants {
					if i > 0 && (g.External.Port() <= grants[0].External.Port() && g.Internal.Port() != grants[0].Internal.Port() ||
						g.External.Port()-grants[0].External.Port() != g.Internal.Port()-grants[0].Internal.Port()) {
						t.Errorf("not a range: %v", grants)
					}
				}
				if c.want != nil && (!slices.Equal(m.rows(), c.want) || got.String() != c.text) {
					t.Errorf("the gateway has %v, %v, want %v, %q", m.rows(), got, c.want, c.text)
				}
				time.Sleep(24 * time.Hour)
				if len(m.live()) != len(grants) {
					t.Errorf("after a day the gateway has %v", m.rows())
				}
				if err := got.Close(); err != nil || len(m.live()) != 0 {
					t.Errorf("Close: %v, the gateway has %v", err, m.rows())
				}
			})
		})
	}
}

// If one port of a range is refused, nothing of the range stays.
func TestRangeIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.taken[8002] = true
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		_, err := f.Enable(t.Context(), forward.Ports(8000, 8003), forward.Exact())
		if !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Enable: %v", err)
		}
		time.Sleep(time.Second)
		if len(m.live()) != 0 {
			t.Errorf("the gateway has %v", m.rows())
		}
	})
}

// A range that loses one of its ports at a renewal is lost, and had again as a whole.
func TestRangeBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		m.limit = time.Hour
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.Ports(8000, 8001))
		if err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		m.taken[8001] = true
		m.mu.Unlock()
		time.Sleep(time.Hour)
		grants := got.Grants()
		if len(grants) != 2 || grants[1].External.Port() != grants[0].External.Port()+1 || len(m.live()) != 2 {
			t.Errorf("%v, the gateway has %v", grants, m.rows())
		}
	})
}

// Two mappings of one program never hold one internal port by different ranges.
func TestRangesOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		first, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
		if err != nil {
			t.Fatal(err)
		}
		for name, opt := range map[string]forward.Option{
			"its first port": forward.TCP(8000), "another port": forward.TCP(8002), "a range": forward.Ports(8003, 8004), "a longer one": forward.Ports(8000, 8004),
		} {
			if _, err := f.Enable(t.Context(), opt); !errors.Is(err, backends.ErrConflict) {
				t.Errorf("%s: %v, want ErrConflict", name, err)
			}
		}
		same, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil || len(m.live()) != 4 {
			t.Errorf("Close of one of two: %v, the gateway has %v", err, m.rows())
		}
		if err := f.Disable(t.Context(), forward.Ports(8000, 8002)); !errors.Is(err, forward.ErrNoMapping) {
			t.Errorf("Disable of another range: %v", err)
		}
		if err := f.Disable(t.Context(), forward.Ports(8000, 8003)); err != nil || len(m.live()) != 0 {
			t.Errorf("Disable: %v, the gateway has %v", err, m.rows())
		}
		if err := same.Close(); err != nil {
			t.Error(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8002)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// After a crash the range is had again with its external ports. If only one of its ports is
// wanted then, the others are deleted.
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
				m, file := newMemory(), filepath.Join(t.TempDir(), "state")
				f := forwarder(t, forward.Config{StateFile: file}, m)
				if _, err := f.Enable(t.Context(), forward.Ports(8000, 8001), forward.External(9000)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				f.Crash()
				f = forwarder(t, forward.Config{StateFile: file}, m)
				defer f.Close()
				if _, err := f.Enable(t.Context(), c.opts...); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if !slices.Equal(m.rows(), c.want) {
					t.Errorf("the gateway has %v, want %v", m.rows(), c.want)
				}
			})
		})
	}
}

// Options that contradict each other fail, and the error says what to write.
func TestContradictions(t *testing.T) {
	host := netip.MustParseAddrPort("192.168.1.9:81")
	f := forwarder(t, forward.Config{}, newMemory())
	defer f.Close()
	for want, opts := range map[string][]forward.Option{
		"TCP(80) and To(192.168.1.9:81) name two internal ports: to forward external port 80 to 192.168.1.9:81, use External(80) and To(192.168.1.9:81)":  {forward.TCP(80), forward.To(host)},
		"Both(80) and To(192.168.1.9:81) name two internal ports: to forward external port 80 to 192.168.1.9:81, use External(80) and To(192.168.1.9:81)": {forward.To(host), forward.Both(80)},
		"TCP(81) and Ports(80, 90) name two internal ports":                              {forward.TCP(81), forward.Ports(80, 90)},
		"Ports(90, 80) is no range of ports":                                             {forward.Ports(90, 80)},
		"Ports(0, 80) is no range of ports":                                              {forward.Ports(0, 80)},
		"Ports(1000, 1256) has more than 256 ports: enable several ranges":               {forward.Ports(1000, 1256)},
		"the range ends above port 65535":                                                {forward.Ports(1000, 1009), forward.External(65530)},
		"SamePort and Ports exclude each other":                                          {forward.Ports(80, 81), forward.SamePort()},
		"the option Ports is given twice":                                                {forward.Ports(80, 81), forward.Ports(80, 81)},
		"the option Lifetime is given twice":                                             {forward.TCP(80), forward.Lifetime(time.Hour), forward.Lifetime(time.Hour)},
		"the option External is given twice":                                             {forward.TCP(80), forward.External(80), forward.External(81)},
		"the option ExternalAddr is given twice":                                         {forward.TCP(80), forward.ExternalAddr(external), forward.ExternalAddr(external)},
		"the option To is given twice":                                                   {forward.To(host), forward.To(host)},
		"the option From is given twice":                                                 {forward.TCP(80), forward.From(host), forward.From(host)},
		"the option Description is given twice":                                          {forward.TCP(80), forward.Description("a"), forward.Description("b")},
		"the option RenewEvery is given twice":                                           {forward.TCP(80), forward.RenewEvery(time.Hour), forward.RenewEvery(time.Hour)},
		"RenewEvery(10ms) is shorter than 1s":                                            {forward.TCP(80), forward.RenewEvery(10 * time.Millisecond)},
		"Once and RenewEvery exclude each other":                                         {forward.TCP(80), forward.Once(), forward.RenewEvery(time.Hour)},
		"Once and Lifetime(Forever) exclude each other: the mapping would stay for ever": {forward.TCP(80), forward.Lifetime(forward.Forever), forward.Once()},
		"OnChange without a function":                                                    {forward.TCP(80), forward.OnChange(nil)},
		"ExternalAddr without an address":                                                {forward.TCP(80), forward.ExternalAddr(netip.Addr{})},
	} {
		_, err := f.Enable(t.Context(), opts...)
		if !errors.Is(err, backends.ErrInvalid) || err.Error() != "forward: invalid request: "+want {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := f.Enable(t.Context(), forward.External(80), forward.To(netip.MustParseAddrPort("192.0.2.10:81"))); err != nil {
		t.Errorf("what the error recommends: %v", err)
	}
}

// What is still to be deleted, or was left by an earlier run, keeps no other range from
// being enabled, and is deleted or taken over.
func TestRangeLeftovers(t *testing.T) {
	for name, opt := range map[string]forward.Option{
		"its first port": forward.TCP(8000), "another port": forward.TCP(8001), "a range": forward.Ports(8001, 8002), "a longer one": forward.Ports(8000, 8004),
	} {
		for _, kind := range []string{"natpmp", "upnp"} {
			t.Run(name+" by "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMemory()
					m.name = kind
					f := forwarder(t, forward.Config{}, m)
					defer f.Close()
					first, err := f.Enable(t.Context(), forward.Ports(8000, 8003))
					if err != nil {
						t.Fatal(err)
					}
					m.set(func() {
						m.fail = func(op string, _ backends.Protocol, _ uint16) error {
							if op == "unmap" {
								return backends.ErrNoReply
							}
							return nil
						}
					})
					if err := first.Close(); !errors.Is(err, backends.ErrNoReply) {
						t.Errorf("Close: %v", err)
					}
					got, err := f.Enable(t.Context(), opt)
					if err != nil {
						t.Fatal(err)
					}
					m.set(func() { m.fail = nil })
					time.Sleep(5 * time.Minute)
					if rows := m.rows(); len(rows) != len(got.Grants()) {
						t.Errorf("the gateway has %v, of which %v is held", rows, got.Grants())
					}
				})
			})
		}
	}
}

// What an earlier run left by another backend is not in the way.
func TestRangeLeftByAnotherBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, other, file := newMemory(), newMemory(), filepath.Join(t.TempDir(), "state")
		other.name = "other"
		f := forwarder(t, forward.Config{StateFile: file}, other)
		if _, err := f.Enable(t.Context(), forward.Ports(8000, 8003)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		f.Crash()
		f = forwarder(t, forward.Config{StateFile: file}, m, other)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8001)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if rows := append(m.rows(), other.rows()...); !slices.Equal(rows, []string{"tcp 8001→8001"}) {
			t.Errorf("the gateways have %v", rows)
		}
	})
}
