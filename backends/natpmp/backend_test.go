package natpmp_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
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

// silence makes the gateway lose every request.
func silence(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true}) }

func TestContract(t *testing.T) {
	t.Parallel() // it waits for silence
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		gw := start(t, gatewaytest.Config{})
		b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 2, FirstWait: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return backendtest.OnGateway(gw, b, int(natpmp.NotAuthorized))
	})
}

// A mapping to another host is refused before anything is sent: the gateway
// would map to this one.
func TestAnotherHost(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.9:8080")}
	if _, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Map: %v, want ErrUnsupported", err)
	}
	if n := len(gw.Requests()); n != 0 {
		t.Errorf("%d requests reached the gateway", n)
	}
	r.Internal = netip.MustParseAddrPort("127.0.0.1:8080")
	if _, err := b.Map(t.Context(), r); err != nil {
		t.Errorf("Map to this very address: %v", err)
	}
}
