package natpmp_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	jackpal "github.com/jackpal/go-nat-pmp"
	"go.uber.org/goleak"

	natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
	"github.com/natforward/goforward/backends"
	pmp "github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout is the timeout of calls that the gateway replies to.
const testTimeout = 20 * time.Second

// startOnStandardPort starts a gateway on a random loopback address and port 5351, which both
// packages require. Its clock does not advance, so that two gateways report the same times.
func startOnStandardPort(t *testing.T, config gatewaytest.Config) (gw *gatewaytest.Gateway, ip net.IP) {
	t.Helper()
	config.ManualClock = true
	var err error
	for range 10 {
		addr := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250)), byte(1 + rand.IntN(250))})
		config.Listen = netip.AddrPortFrom(addr, 5351)
		if gw, err = gatewaytest.Start(config); err == nil {
			t.Cleanup(func() { _ = gw.Close() })
			return gw, addr.AsSlice()
		}
	}
	t.Skipf("NOT TESTED: no loopback address with port 5351 (%v)", err)
	return nil, nil
}

// apiCall is a call that the tests make to either package.
type apiCall struct {
	name               string // "address", "map", or "duration" for AddPortMappingWithDuration
	protocol           string
	internal, external int
	lifetime           int
	duration           time.Duration
}

// callGoNATPMP makes a call to go-nat-pmp. It returns nil or a result type of package natpmp.
func callGoNATPMP(c *jackpal.Client, a apiCall) (any, error) {
	switch a.name {
	case "address":
		r, err := c.GetExternalAddress()
		if r == nil {
			return nil, err
		}
		return natpmp.GetExternalAddressResult(*r), err
	case "duration":
		return goNATPMPMapping(c.AddPortMappingWithDuration(a.protocol, a.internal, a.external, a.duration))
	}
	return goNATPMPMapping(c.AddPortMapping(a.protocol, a.internal, a.external, a.lifetime))
}

func goNATPMPMapping(r *jackpal.AddPortMappingResult, err error) (any, error) {
	if r == nil {
		return nil, err
	}
	return natpmp.AddPortMappingResult(*r), err
}

// callClient makes a call to package natpmp. It returns nil or a result.
func callClient(c *natpmp.Client, a apiCall) (any, error) {
	switch a.name {
	case "address":
		r, err := c.GetExternalAddress()
		if r == nil {
			return nil, err
		}
		return *r, err
	case "duration":
		return clientMapping(c.AddPortMappingWithDuration(a.protocol, a.internal, a.external, a.duration))
	}
	return clientMapping(c.AddPortMapping(a.protocol, a.internal, a.external, a.lifetime))
}

func clientMapping(r *natpmp.AddPortMappingResult, err error) (any, error) {
	if r == nil {
		return nil, err
	}
	return *r, err
}

// sessionCalls are the calls that TestSameResultsAsGoNATPMP makes, in this order.
var sessionCalls = []apiCall{
	{name: "address"},
	{name: "map", protocol: "tcp", internal: 8080, external: 80, lifetime: 3600},
	{name: "map", protocol: "tcp", internal: 8080, external: 81, lifetime: 60}, // repeated
	{name: "map", protocol: "udp", internal: 8080, external: 0, lifetime: natpmp.RECOMMENDED_MAPPING_LIFETIME_SECONDS},
	{name: "map", protocol: "udp", internal: 1, external: 9999, lifetime: 60}, // another host has the port
	{name: "map", protocol: "tcp", internal: 65535, external: 65535, lifetime: min(1<<32-1, math.MaxInt)},
	{name: "duration", protocol: "tcp", internal: 3, external: 3, duration: 90*time.Second + 999*time.Millisecond},
	{name: "map", protocol: "tcp", internal: 8080},   // deleted
	{name: "map", protocol: "tcp", internal: 8080},   // deleted again
	{name: "duration", protocol: "udp", internal: 1}, // deleted
	{name: "map", protocol: "tcp", internal: 0, external: 0, lifetime: 60},
	{name: "map", protocol: "tcp", internal: 0, external: 0}, // deletes all mappings for TCP
	{name: "map", protocol: "sctp", internal: 1, external: 1, lifetime: 1},
	{name: "map", protocol: "", internal: 1, external: 1, lifetime: 1},
	{name: "map", protocol: "tcp", internal: -1, external: 1, lifetime: 1},
	{name: "map", protocol: "tcp", internal: 65536, external: 1, lifetime: 1},
	{name: "map", protocol: "tcp", internal: 1, external: -1, lifetime: 1},
	{name: "map", protocol: "tcp", internal: 1, external: 65536, lifetime: 1},
	{name: "map", protocol: "tcp", internal: 1, external: 1, lifetime: -1},
	{name: "map", protocol: "tcp", internal: 1, external: 1, lifetime: min(1<<32, math.MaxInt)},
	{name: "duration", protocol: "tcp", internal: 1, external: 1, duration: -time.Second},
}

// TestSameResultsAsGoNATPMP makes the same calls to both packages, each with its own gateway.
// The results must be equal, the same calls must fail, and the tables of both gateways must be
// equal at the end.
func TestSameResultsAsGoNATPMP(t *testing.T) {
	for name, config := range map[string]gatewaytest.Config{
		"default":             {},
		"short lifetimes":     {MaxLifetime: time.Minute},
		"no external address": {External: netip.IPv4Unspecified()},
		"VPN":                 {Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VPN: true}}},
		"PCP only":            {Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}},
		"lenient":             {Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{EchoErrors: true, AnyDeletePort: true}}},
		"several ports":       {Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{MultiplePorts: true}}},
		"table limit":         {TableLimit: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			goNATPMPGateway, goNATPMPIP := startOnStandardPort(t, config)
			clientGateway, clientIP := startOnStandardPort(t, config)
			for _, gw := range []*gatewaytest.Gateway{goNATPMPGateway, clientGateway} {
				gw.Advance(1234 * time.Second)
				_ = gw.AddMapping(gatewaytest.Entry{ // fails if the table is full
					Protocol: backends.UDP, Internal: netip.MustParseAddrPort("127.0.0.9:80"),
					External: netip.AddrPortFrom(gw.External(), 9999),
				})
			}
			goNATPMP, client := jackpal.NewClientWithTimeout(goNATPMPIP, testTimeout), natpmp.NewClientWithTimeout(clientIP, testTimeout)
			for _, a := range sessionCalls {
				want, wantErr := callGoNATPMP(goNATPMP, a)
				got, err := callClient(client, a)
				if config.Quirks.NATPMP.VPN { // this gateway grants random ports
					want, got = withoutPort(want), withoutPort(got)
				}
				if diff := cmp.Diff(want, got); diff != "" || (wantErr == nil) != (err == nil) {
					t.Errorf("%+v: (-go-nat-pmp +natpmp)\n%s%v\n%v", a, diff, wantErr, err)
				}
			}
			if want, got := tableWithoutAddresses(goNATPMPGateway), tableWithoutAddresses(clientGateway); !config.Quirks.NATPMP.VPN && !slices.Equal(want, got) {
				t.Errorf("the gateway of go-nat-pmp has %v, the gateway of natpmp %v", want, got)
			}
		})
	}
}

func withoutPort(result any) any {
	if m, ok := result.(natpmp.AddPortMappingResult); ok {
		m.MappedExternalPort = 0
		return m
	}
	return result
}

// tableWithoutAddresses returns the entries of a gateway without its address.
func tableWithoutAddresses(gw *gatewaytest.Gateway) []string {
	var rows []string
	for _, e := range gw.Table() {
		internal, external := e.Internal.Port(), e.External.Port()
		rows = append(rows, strings.Join([]string{
			e.Protocol.String(), netip.AddrPortFrom(gw.External(), external).String(),
			netip.AddrPortFrom(gw.External(), internal).String(), e.Remaining.String(),
		}, " "))
	}
	return rows
}

// TestDifferencesFromGoNATPMP checks calls that fail or misbehave in go-nat-pmp.
func TestDifferencesFromGoNATPMP(t *testing.T) {
	t.Parallel()
	gw, ip := startOnStandardPort(t, gatewaytest.Config{})
	c := natpmp.NewClientWithTimeout(ip, testTimeout)
	if _, err := c.AddPortMapping("TCP", 8080, 8080, 60); err != nil {
		t.Errorf("protocol in upper case: %v", err)
	}
	if _, err := c.AddPortMappingWithDuration("tcp", 8080, 8080, time.Millisecond); err != nil || len(gw.Table()) != 1 {
		t.Errorf("duration of a millisecond: %v, the gateway has %v", err, gw.Table())
	}
	// A duration that is too long fails, even if an int has 32 bits. Truncated to 32 bits, it
	// would be 0, which deletes the mapping.
	if _, err := c.AddPortMappingWithDuration("tcp", 8080, 8080, 1<<32*time.Second); !errors.Is(err, backends.ErrInvalid) || len(gw.Table()) != 1 {
		t.Errorf("duration of 2³² seconds: %v, the gateway has %v", err, gw.Table())
	}
	// Gateways refuse a deletion with an external port.
	if _, err := c.AddPortMapping("tcp", 8080, 8080, 0); err != nil || len(gw.Table()) != 0 {
		t.Errorf("deletion: %v, the gateway has %v", err, gw.Table())
	}
}

// TestErrorTypes checks the errors for refusals, and for gateways that support only PCP.
func TestErrorTypes(t *testing.T) {
	t.Parallel()
	gw, ip := startOnStandardPort(t, gatewaytest.Config{})
	c := natpmp.NewClientWithTimeout(ip, testTimeout)
	var refusal *pmp.ResultError
	for code, kind := range map[int]error{
		2: backends.ErrNotAuthorized, 3: backends.ErrNetworkFailure, 4: backends.ErrNoResources, 99: backends.ErrMalformed,
	} {
		stopRefusing := gw.Inject(gatewaytest.Fault{Result: code})
		for _, a := range []apiCall{{name: "address"}, {name: "map", protocol: "tcp", internal: 80, lifetime: 60}, {name: "map", protocol: "udp", internal: 80}} {
			_, err := callClient(c, a)
			if !errors.Is(err, kind) || !errors.As(err, &refusal) || int(refusal.Code) != code {
				t.Errorf("%v, refused with result code %d: %v", a, code, err)
			}
		}
		stopRefusing()
	}
	for name, q := range map[string]quirks.NATPMP{"whole": {PCPOnly: true}, "truncated": {PCPOnlyTruncated: true}} {
		_, ip := startOnStandardPort(t, gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: q}})
		c := natpmp.NewClientWithTimeout(ip, testTimeout)
		for _, a := range []apiCall{{name: "address"}, {name: "map", protocol: "tcp", internal: 80, lifetime: 60}, {name: "map", protocol: "tcp", internal: 80}} {
			_, err := callClient(c, a)
			var version *pmp.VersionError
			if !errors.As(err, &version) || version.Version != 2 || !strings.Contains(err.Error(), "PCP") {
				t.Errorf("%s: %v: %v", name, a, err)
			}
		}
	}
}

// TestInvalidResponses checks that these responses are errors: a grant without a port or
// lifetime, a response for another port, and a truncated response.
func TestInvalidResponses(t *testing.T) {
	t.Parallel()
	gw, ip := startOnStandardPort(t, gatewaytest.Config{})
	c := natpmp.NewClientWithTimeout(ip, testTimeout)
	response := func(internal, external byte, lifetime byte) func([]byte) [][]byte {
		return func([]byte) [][]byte {
			return [][]byte{{0, 130, 0, 0, 0, 0, 0, 1, 0, internal, 0, external, 0, 0, 0, lifetime}}
		}
	}
	for name, test := range map[string]struct {
		reply func([]byte) [][]byte
		call  apiCall
		fails bool
	}{
		"no port":      {response(0, 0, 60), apiCall{name: "map", protocol: "tcp", lifetime: 60}, true},
		"no lifetime":  {response(0, 9, 0), apiCall{name: "map", protocol: "tcp", lifetime: 60}, true},
		"another port": {response(7, 0, 0), apiCall{name: "map", protocol: "tcp", internal: 8}, true},
		"same port":    {response(8, 0, 0), apiCall{name: "map", protocol: "tcp", internal: 8}, false},
		"truncated":    {func([]byte) [][]byte { return [][]byte{{0, 130, 0, 0, 0, 0}} }, apiCall{name: "map", protocol: "tcp", internal: 8}, true},
	} {
		removeFault := gw.Inject(gatewaytest.Fault{Reply: test.reply})
		if _, err := callClient(c, test.call); (err != nil) != test.fails || test.fails && !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		removeFault()
	}
}

// TestTimeout checks that a call ends at its timeout if the gateway does not reply, and that
// the client repeats lost requests. If the port is closed, the call fails at once.
func TestTimeout(t *testing.T) {
	t.Parallel()
	gw, ip := startOnStandardPort(t, gatewaytest.Config{})
	stopDropping := gw.Inject(gatewaytest.Fault{Drop: true})
	if _, err := natpmp.NewClientWithTimeout(ip, 300*time.Millisecond).GetExternalAddress(); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("no reply: %v, want ErrNoReply", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, nil); err != nil { // the gateway may read them late
		t.Error(err)
	}
	if n := len(gw.Requests()); n > 2 {
		t.Errorf("%d requests in 300 ms", n)
	}
	if _, err := natpmp.NewClientWithTimeout(ip, -1).GetExternalAddress(); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("negative timeout: %v, want ErrNoReply", err)
	}
	stopDropping()
	stopLosing := gw.Inject(gatewaytest.Fault{Drop: true, Times: 2})
	defer stopLosing()
	if _, err := natpmp.NewClient(ip).GetExternalAddress(); err != nil {
		t.Errorf("after two lost requests: %v", err)
	}
	gw.Down()
	for _, a := range []apiCall{{name: "address"}, {name: "map", protocol: "tcp", internal: 80}} {
		if _, err := callClient(natpmp.NewClient(ip), a); !errors.Is(err, syscall.ECONNREFUSED) || !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("closed port: %v, want ECONNREFUSED and ErrNoReply", err)
		}
	}
}

// TestLocalAddress checks that requests come from the local address of the constructor.
func TestLocalAddress(t *testing.T) {
	t.Parallel()
	gw, ip := startOnStandardPort(t, gatewaytest.Config{})
	local := net.IPv4(127, 0, 0, 77)
	for _, c := range []*natpmp.Client{natpmp.NewClientWithLocal(ip, local), natpmp.NewClientWithLocalAndTimeout(ip, local, testTimeout)} {
		if _, err := c.GetExternalAddress(); err != nil {
			t.Skipf("NOT TESTED: no second loopback address (%v)", err)
		}
	}
	for _, r := range gw.Requests() {
		if got := r.Source.Addr(); got != netip.MustParseAddr("127.0.0.77") {
			t.Errorf("request from %v", got)
		}
	}
}

// TestInvalidAddresses checks that calls fail if the addresses of the constructor are invalid.
// The constructors themselves return no error.
func TestInvalidAddresses(t *testing.T) {
	for name, c := range map[string]*natpmp.Client{
		"no gateway":  natpmp.NewClient(nil),
		"five bytes":  natpmp.NewClient(net.IP{1, 2, 3, 4, 5}),
		"IPv6":        natpmp.NewClient(net.ParseIP("2001:db8::1")),
		"unspecified": natpmp.NewClient(net.IPv4zero),
		"local":       natpmp.NewClientWithLocal(net.IPv4(127, 0, 0, 1), net.IP{1}),
		"local IPv6":  natpmp.NewClientWithLocal(net.IPv4(127, 0, 0, 1), net.IPv6loopback),
		"zero Client": {},
	} {
		for _, a := range []apiCall{{name: "address"}, {name: "map", protocol: "tcp", internal: 80, lifetime: 60}, {name: "map", protocol: "tcp", internal: 80}} {
			if r, err := callClient(c, a); r != nil || !errors.Is(err, backends.ErrInvalid) {
				t.Errorf("%s: %v: %v, %v, want ErrInvalid", name, a, r, err)
			}
		}
	}
}
