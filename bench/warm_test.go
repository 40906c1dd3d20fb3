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
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// warm is a call of a candidate that has already found the gateway. start returns a function
// that prepares one call; the preparation is not measured.
type warm struct {
	key, candidate string
	start          func(testing.TB) (prepare func() func() error)
}

const (
	warmPort  = 9000
	tableSize = 1000 // entries
)

var warmCalls = []warm{
	{keyEnable, goforwardGatewayName, enableAndClose},
	{keyEnable, goNATPMPName, addAndDelete},
	{keyRefresh, goforwardGatewayName, refresh},
	{keyRefresh, goNATPMPName, addAgain},
	{keyDisable, goforwardGatewayName, disable},
	{keyDisable, goNATPMPName, deleteOne},
	{keyList, goforwardName, list},
	{keyList, goupnpName, listEntries},
}

// warm measures the calls of the candidates, interleaved.
func (b *bench) warm(t *testing.T) {
	const roundFactor = 10 // more rounds than for cold starts, because warm calls are short
	var prepared []func() func() error
	for _, w := range warmCalls {
		prepared = append(prepared, w.start(t))
	}
	for round := range b.Rounds * roundFactor {
		for order, i := range b.rng.Perm(len(warmCalls)) {
			w := warmCalls[i]
			if w.key == keyList && round%roundFactor != 0 {
				continue
			}
			run := prepared[i]()
			start := time.Now()
			err := run()
			s := Sample{Scenario: w.key, Candidate: w.candidate, Round: round, Order: order, Took: time.Since(start)}
			if err != nil {
				s.Err = err.Error()
				t.Errorf("%s, %s: %v", w.key, w.candidate, err)
			}
			b.add(s)
		}
	}
}

// BenchmarkWarm runs the same calls as ordinary benchmarks.
func BenchmarkWarm(b *testing.B) {
	for _, w := range warmCalls {
		b.Run(w.key+"/"+w.candidate, func(b *testing.B) {
			prepare := w.start(b)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				run := prepare()
				b.StartTimer()
				if err := run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// natpmpGateway starts a gateway that supports only NAT-PMP. Each caller gets its own gateway,
// on port 5351, because go-nat-pmp supports no other port.
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

// newForwarder returns a Forwarder that has already found its gateway.
func newForwarder(t testing.TB, config *forward.Config) *forward.Forwarder {
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
	return newForwarder(t, &forward.Config{Gateway: netip.AddrPortFrom(natpmpGateway(t), 0)})
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

// fullGateway starts a gateway that supports only UPnP and has tableSize entries.
func fullGateway(t testing.TB, router quirks.UPnP) *gatewaytest.Gateway {
	t.Helper()
	gw := startGateway(t, gatewaytest.Config{
		Protocols: []string{"upnp"}, TableLimit: 2 * tableSize, Quirks: quirks.Quirks{UPnP: router},
	})
	gw.Down("natpmp", "pcp")
	for i := range uint16(tableSize) {
		err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 1024+i),
			Internal: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1024+i), Remaining: lifetime, Description: "another host's",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return gw
}

func list(t testing.TB) func() func() error {
	gw := fullGateway(t, quirks.UPnP{})
	f := newForwarder(t, &forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}})
	return func() func() error {
		return func() error {
			entries, err := f.Mappings(context.Background())
			return checkTableSize(len(entries), err)
		}
	}
}

// listEntries requests one entry after another until the table ends. The client of goupnp has
// no function that lists the whole table; its only other function takes a range of ports.
func listEntries(t testing.TB) func() func() error {
	location, err := url.Parse(fullGateway(t, quirks.UPnP{}).UPnP().DescriptionURL())
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
					return checkTableSize(int(i), nil)
				}
				if err != nil {
					return checkTableSize(int(i), err)
				}
			}
		}
	}
}

func checkTableSize(n int, err error) error {
	if err != nil || n != tableSize {
		return fmt.Errorf("%d entries, want %d: %w", n, tableSize, err)
	}
	return nil
}
