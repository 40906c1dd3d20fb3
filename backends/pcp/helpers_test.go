package pcp_test

import (
	"cmp"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a gateway, which is closed at the end of the test.
func start(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// open returns a backend with short waits. They are long enough for a gateway in
// this process that does not run for a second.
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

// injectReplies makes the gateway answer every request with the datagrams that f
// returns.
func injectReplies(gw *gatewaytest.Gateway, f func(request []byte) [][]byte) {
	gw.Inject(gatewaytest.Fault{Reply: f})
}

// injectRefusals makes the gateway answer every request with an error.
func injectRefusals(gw *gatewaytest.Gateway, code pcp.ResultCode, lifetime time.Duration) {
	injectReplies(gw, func(request []byte) [][]byte {
		b, err := pcp.AppendErrorResponse(nil, request, code, lifetime, time.Hour)
		if err != nil {
			return nil
		}
		return [][]byte{b}
	})
}

var webRequest = backends.Request{Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), Lifetime: time.Hour}

// mapRequests returns the requests that the gateway received, all MAP requests.
func mapRequests(t *testing.T, gw *gatewaytest.Gateway) (out []pcp.MapRequest) {
	t.Helper()
	for _, r := range gw.Requests() {
		q, err := pcp.ParseMapRequest(r.Raw)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, q)
	}
	return out
}

// lastMapRequest returns the last request that the gateway received, a MAP request.
func lastMapRequest(t *testing.T, gw *gatewaytest.Gateway) pcp.MapRequest {
	t.Helper()
	requests := mapRequests(t, gw)
	return requests[len(requests)-1]
}

// unhex decodes hexadecimal digits and ignores spaces.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// vector returns the bytes of the named vector.
func vector(name string) []byte {
	s, ok := vectors[name]
	if !ok {
		panic("no vector " + name)
	}
	return unhex(s)
}
