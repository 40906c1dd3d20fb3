package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/lab"
)

const (
	closeCount = 50                    // the number of mappings that are deleted
	closeDelay = 60 * time.Millisecond // the time that the slow gateway needs for each response
	// slowCloseRounds limits the rounds on the slow gateway, because a sample takes seconds.
	// From six values on, there is a confidence interval.
	slowCloseRounds = 6
)

// closeRouters has the router for each protocol.
var closeRouters = map[string]lab.Router{
	"natpmp": {NoPCP: true, NoUPnP: true}, "pcp": {NoNATPMP: true, NoUPnP: true}, "upnp": {Refuse5351: true},
}

// closes measures Close of a Forwarder with closeCount mappings, on the router of the lab and
// on a gateway that needs closeDelay for each response.
func (b *bench) closes(t *testing.T) {
	for _, c := range closeComparisons {
		b.closeOnRouter(t, c)
		if !b.smoke || *flagOnly != "" { // a test of package forward does the same
			b.closeOnSlowGateway(t, c)
		}
	}
}

func (b *bench) closeOnRouter(t *testing.T, c closeComparison) {
	home := lab.Home(t, closeRouters[c.protocol])
	to := target{Gateway: home.Gateway, Self: home.Lan.Addr(), Description: routerDescription(home.Gateway)}
	b.rounds(t, c.key, []string{goforwardCloseName, c.raw}, func(ctx context.Context, candidate string, _ int) Sample {
		to.Candidate, to.Port = candidate, b.nextPorts()
		s := withoutMappings(sample(home.Lan.Command(ctx, executable(t)), to), len(home.Rules(t)))
		resetRouter(ctx, t, home, candidate)
		return s
	})
	b.checkFailures(t, c.key)
}

func (b *bench) closeOnSlowGateway(t *testing.T, c closeComparison) {
	gw := startGateway(t, gatewaytest.Config{Listen: loopbackGateway, Protocols: []string{c.protocol}})
	defer gw.Close()
	to := target{Gateway: loopbackGateway.Addr(), Self: netip.MustParseAddr("127.0.0.1")}
	if c.protocol == "upnp" {
		gw.Down("natpmp", "pcp")
		to.SSDP, to.Description = gw.SSDP(), gw.UPnP().DescriptionURL()
	}
	rounds := b.Rounds
	defer func() { b.Rounds = rounds }()
	b.Rounds = min(rounds, slowCloseRounds)
	b.rounds(t, c.slowKey, []string{goforwardCloseName, c.raw}, func(ctx context.Context, candidate string, _ int) Sample {
		var full atomic.Bool // the candidate has created its mappings
		remove := gw.Inject(gatewaytest.Fault{Delay: closeDelay, Match: func(gatewaytest.Request) bool {
			if !full.Load() && len(gw.Table()) == closeCount {
				full.Store(true)
			}
			return full.Load()
		}})
		defer remove()
		to.Candidate, to.Port = candidate, b.nextPorts()
		s := withoutMappings(sample(localCommand(ctx, t), to), len(gw.Table()))
		for _, e := range gw.Table() {
			gw.RemoveMapping(e.Protocol, e.External.Port())
		}
		return s
	})
	b.checkFailures(t, c.slowKey)
}

// nextPorts returns the first of closeCount ports that were not mapped recently.
func (b *bench) nextPorts() uint16 {
	if b.port+closeCount >= 40000 {
		b.port = 20000
	}
	first := b.port + 1
	b.port += closeCount
	return first
}

// withoutMappings marks a sample as failed if mappings remain in the table of the gateway.
func withoutMappings(s Sample, remaining int) Sample {
	if s.Err == "" && remaining > 0 {
		s.Err = fmt.Sprintf("%d of %d mappings remain", remaining, closeCount)
	}
	return s
}

// routerDescription returns the URL of the description of the router in the lab.
func routerDescription(gateway netip.Addr) string {
	return fmt.Sprintf("http://%v:5000/rootDesc.xml", gateway)
}

// goforwardClose creates the mappings, and measures Close.
func goforwardClose(to target) (attempt, error) {
	f, err := forward.New(&forward.Config{
		Lifetime: lifetime, Gateway: netip.AddrPortFrom(to.Gateway, 0), Test: forward.TestNetwork{SSDP: to.SSDP},
	})
	if err != nil {
		return attempt{}, err
	}
	var got outcome
	for i := range uint16(closeCount) {
		m, err := f.Enable(context.Background(), forward.UDP(to.Port+i))
		if err != nil {
			_ = f.Close()
			return attempt{}, err
		}
		got = outcome{External: m.External().AddrPort, Protocol: m.Backend()}
	}
	return attempt{run: func(context.Context) (outcome, error) { return got, f.Close() }, clean: func() {}}, nil
}

// rawClose creates the mappings by raw sockets, and measures their deletion. The function
// connect returns the request that creates a mapping, or deletes it if seconds is zero.
func rawClose(protocol string, connect func(ctx context.Context, to target) (request func(ctx context.Context, port uint16, seconds uint32) error, err error)) func(target) (attempt, error) {
	return func(to target) (attempt, error) {
		ctx, cancel := context.WithTimeout(context.Background(), watchdog)
		defer cancel()
		request, err := connect(ctx, to)
		if err != nil {
			return attempt{}, err
		}
		all := func(ctx context.Context, seconds uint32) error {
			for i := range uint16(closeCount) {
				if err := request(ctx, to.Port+i, seconds); err != nil {
					return err
				}
			}
			return nil
		}
		if err := all(ctx, uint32(lifetime.Seconds())); err != nil {
			return attempt{}, err
		}
		return attempt{
			run: func(ctx context.Context) (outcome, error) {
				return outcome{External: netip.AddrPortFrom(to.Gateway, to.Port), Protocol: protocol}, all(ctx, 0)
			},
			clean: func() {},
		}, nil
	}
}

func connectNATPMP(_ context.Context, to target) (func(context.Context, uint16, uint32) error, error) {
	conn, err := dial5351(to)
	return func(ctx context.Context, port uint16, seconds uint32) error {
		_, err := request5351(ctx, conn, natpmpMap(port, seconds), 16)
		return err
	}, err
}

func connectPCP(_ context.Context, to target) (func(context.Context, uint16, uint32) error, error) {
	conn, err := dial5351(to)
	return func(ctx context.Context, port uint16, seconds uint32) error {
		to.Port = port
		var nonce [12]byte
		binary.BigEndian.PutUint16(nonce[:], port)
		_, err := request5351(ctx, conn, pcpMap(to, nonce, seconds), 60)
		return err
	}, err
}

func connectUPnP(ctx context.Context, to target) (func(context.Context, uint16, uint32) error, error) {
	location, err := url.Parse(to.Description)
	if err != nil {
		return nil, err
	}
	c := &rawHTTP{host: location.Host}
	if err := rawDescribe(ctx, c, location); err != nil {
		return nil, err
	}
	return func(ctx context.Context, port uint16, seconds uint32) error {
		to.Port = port
		if seconds == 0 {
			return rawDelete(ctx, c, to)
		}
		return rawAdd(ctx, c, to)
	}, nil
}

// closeSections returns the tables of the report.
func closeSections() []Section {
	var out []Section
	for _, c := range closeComparisons {
		candidates := []string{goforwardCloseName, c.raw}
		out = append(out,
			Section{Key: c.key, Title: fmt.Sprintf("Close with %d mappings on the router, %s", closeCount, c.protocol), Candidates: candidates},
			Section{Key: c.slowKey, Title: fmt.Sprintf("Close with %d mappings on gatewaytest, %v for each response, %s", closeCount, closeDelay, c.protocol), Candidates: candidates})
	}
	return out
}
