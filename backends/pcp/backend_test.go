package pcp_test

import (
	"cmp"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends/backendtest"
	"github.com/natforward/goforward/backends/pcp"
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

// open makes an impatient backend.
func open(t *testing.T, config pcp.Config) *pcp.Backend {
	t.Helper()
	config.Transmissions, config.FirstWait = cmp.Or(config.Transmissions, 2), 50*time.Millisecond
	b, err := pcp.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestContract(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		gw := start(t, gatewaytest.Config{})
		return backendtest.OnGateway(gw, open(t, pcp.Config{Gateway: gw.Addr()}), int(pcp.NotAuthorized))
	})
}
