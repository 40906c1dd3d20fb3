package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
	natpmp "github.com/jackpal/go-nat-pmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// warm is a call of somebody who knows the gateway already. ready prepares one,
// which is not measured.
type warm struct {
	key, peer string
	start     func(testing.TB) (ready func() func() error)
}

const (
	warmPort = 9000
	listed   = 1000 // entries
)

var warmCalls = []warm{
	{keyEnable, oursTold, enableAndClose},
	{keyEnable, goNATPMPName, addAndDelete},
	{keyRefresh, oursTold, refresh},
	{keyRefresh, goNATPMPName, addAgain},
	{keyDisable, oursTold, disable},
	{keyDisable, goNATPMPName, deleteOne},
	{keyList, ours, list},
	{keyList, goupnpName, listEach},
}

// warm interleaves the calls of those who are compared.
func (b *bench) warm(t *testing.T) {
	const more = 10 // than cold rounds: these are short
	var readies []func() func() error
	for _, w := range warmCalls {
		readies = append(readies, w.start(t))
	}
	for round := range b.Rounds * more {
		for order, i := range b.rng.Perm(len(warmCalls)) {
			w := warmCalls[i]
			if w.key == keyList && round%more != 0 {
				continue
			}
			run := readies[i]()
			begun := time.Now()
			err := run()
			s := Sample{Scenario: w.key, Peer: w.peer, Round: round, Order: order, Took: time.Since(begun)}
			if err != nil {
				s.Err = err.Error()
				t.Errorf("%s, %s: %v", w.key, w.peer, err)
			}
			b.add(s)
		}
	}
}

// BenchmarkWarm has the same calls as ordinary benchmarks.
func BenchmarkWarm(b *testing.B) {
	for _, w := range warmCalls {
		b.Run(w.key+"/"+w.peer, func(b *testing.B) {
			ready := w.start(b)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				run := ready()
				b.StartTimer()
				if err := run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// natpmpGateway speaks NAT-PMP alone. Each caller has one of its own, on the
// port that go-nat-pmp knows.
func natpmpGateway(t testing.TB) netip.Addr {
	t.Helper()
	for last := byte(1); last < 100; last++ {
		at := netip.AddrFrom4([4]byte{127, 0, 1, last})
		gw, err := gatewaytest.Start(gatewaytest.Config{
			Listen: netip.AddrPortFrom(at, port5351), Protocols: []string{"natpmp"},
		})
		if err == nil {
			t.Cleanup(func() { gw.Close() })
			return at
		}
	}
	t.Fatal("no address for a gateway")
	return netip.Addr{}
}

func knowing(t testing.TB, config *forward.Config) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Gateway(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func natpmpForwarder(t testing.TB) *forward.Forwarder {
	t.Helper()
	return knowing(t, &forward.Config{Gateway: netip.AddrPortFrom(natpmpGateway(t), 0)})
}

func enableAndClose(t testing.TB) func() func() error {
	f := natpmpForwarder(t)
	return func() func() error {
		return func() error {
			m, err := f.Enable(context.Background(), forward.TCP(warmPort))
			if err != nil {
				return err
			}
			return m.Close()
		}
	}
}

func addAndDelete(t testing.TB) func() func() error {
	c := natpmp.NewClient(natpmpGateway(t).AsSlice())
	return func() func() error {
		return func() error {
			_, err := c.AddPortMapping("tcp", warmPort, warmPort, int(lifetime.Seconds()))
			_, derr := c.AddPortMapping("tcp", warmPort, 0, 0)
			return errors.Join(err, derr)
		}
	}
}

func refresh(t testing.TB) func() func() error {
	m, err := natpmpForwarder(t).Enable(t.Context(), forward.TCP(warmPort))
	if err != nil {
		t.Fatal(err)
	}
	return func() func() error { return func() error { return m.Refresh(context.Background()) } }
}

func addAgain(t testing.TB) func() func() error {
	c := natpmp.NewClient(natpmpGateway(t).AsSlice())
	return func() func() error {
		return func() error {
			_, err := c.AddPortMapping("tcp", warmPort, warmPort, int(lifetime.Seconds()))
			return err
		}
	}
}

func disable(t testing.TB) func() func() error {
	f := natpmpForwarder(t)
	return func() func() error {
		_, err := f.Enable(context.Background(), forward.TCP(warmPort))
		return func() error { return errors.Join(err, f.Disable(context.Background())) }
	}
}

func deleteOne(t testing.TB) func() func() error {
	c := natpmp.NewClient(natpmpGateway(t).AsSlice())
	return func() func() error {
		_, err := c.AddPortMapping("tcp", warmPort, warmPort, int(lifetime.Seconds()))
		return func() error {
			_, derr := c.AddPortMapping("tcp", warmPort, 0, 0)
			return errors.Join(err, derr)
		}
	}
}

// fullGateway speaks UPnP alone and has many entries.
func fullGateway(t testing.TB) *gatewaytest.Gateway {
	t.Helper()
	gw := startGateway(t, gatewaytest.Config{Protocols: []string{"upnp"}, TableLimit: 2 * listed})
	gw.Down("natpmp", "pcp")
	for i := range uint16(listed) {
		err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 1024+i),
			Internal: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1024+i), Remaining: lifetime, Description: "somebody's",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return gw
}

func list(t testing.TB) func() func() error {
	gw := fullGateway(t)
	f := knowing(t, &forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}})
	return func() func() error {
		return func() error {
			entries, err := f.Mappings(context.Background())
			return wantListed(len(entries), err)
		}
	}
}

// listEach asks for one entry after another until there are no more, which is
// all that goupnp's client has but for one call that takes a range.
func listEach(t testing.TB) func() func() error {
	location, err := url.Parse(fullGateway(t).UPnP().DescriptionURL())
	if err != nil {
		t.Fatal(err)
	}
	clients, err := internetgateway2.NewWANIPConnection2ClientsByURLCtx(t.Context(), location)
	if err != nil || len(clients) == 0 {
		t.Fatalf("%d clients: %v", len(clients), err)
	}
	return func() func() error {
		return func() error {
			for i := uint16(0); ; i++ {
				_, _, _, _, _, _, _, _, err := clients[0].GetGenericPortMappingEntry(i)
				var fault *soap.SOAPFaultError
				if errors.As(err, &fault) {
					return wantListed(int(i), nil)
				}
				if err != nil {
					return wantListed(int(i), err)
				}
			}
		}
	}
}

func wantListed(n int, err error) error {
	if err != nil || n != listed {
		return fmt.Errorf("%d entries, want %d: %w", n, listed, err)
	}
	return nil
}
