package pcp_test

import (
	"cmp"
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backendtest"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a gateway that ends with the test.
func start(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// open makes an impatient backend. It waits long enough for a gateway in a process
// that does not run for a second.
func open(t *testing.T, config pcp.Config) *pcp.Backend {
	t.Helper()
	config.Transmissions, config.FirstWait = cmp.Or(config.Transmissions, 2), 500*time.Millisecond
	b, err := pcp.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestContract(t *testing.T) {
	t.Parallel() // it waits for silence
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		gw := start(t, gatewaytest.Config{})
		return backendtest.OnGateway(gw, open(t, pcp.Config{Gateway: gw.Addr()}), int(pcp.NotAuthorized))
	})
}

// A request that got no answer may have been granted, and a strict server has
// nobody else renew that: the next request for the same is the same mapping's.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	remove := gw.Inject(gatewaytest.Fault{DropReply: true})
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("0.0.0.0:8080"), Lifetime: time.Hour}
	if _, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrNoReply) {
		t.Fatalf("without answers: %v", err)
	}
	if n := len(gw.Table()); n != 1 {
		t.Fatalf("the gateway has %d mappings, want the one that nobody was told of", n)
	}
	remove()
	r.Internal = netip.MustParseAddrPort("127.0.0.1:8080") // the same, by another name
	m, err := b.Map(t.Context(), r)
	if err != nil {
		t.Fatalf("asked for again: %v", err)
	}
	other := open(t, pcp.Config{Gateway: gw.Addr()})
	if _, err := other.Map(t.Context(), r); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("of another process: %v, want a refusal", err)
	}
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// What admits one peer is not renewed as what admits everybody: the peer's filter
// would stay.
func TestUnansweredPeer(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"), Lifetime: time.Hour}
	r.Remote = netip.MustParseAddrPort("45.45.46.3:0")
	if _, err := b.Map(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	r.Remote = netip.AddrPort{}
	if m, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("for everybody: %v, %v; want a refusal", m, err)
	}
}
