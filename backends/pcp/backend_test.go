package pcp_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backendtest"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestContract(t *testing.T) {
	t.Parallel() // it waits for timeouts
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		gw := start(t, gatewaytest.Config{})
		return backendtest.OnGateway(gw, open(t, pcp.Config{Gateway: gw.Addr()}), int(pcp.NotAuthorized))
	})
}

// TestMapAfterLostReply checks that a request is repeated with the same nonce if
// its reply was lost. The server may have granted it, and a strict server accepts
// no other nonce for the mapping.
func TestMapAfterLostReply(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	remove := gw.Inject(gatewaytest.Fault{DropReply: true})
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("0.0.0.0:8080"), Lifetime: time.Hour}
	if _, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrNoReply) {
		t.Fatalf("without replies: %v", err)
	}
	if n := len(gw.Table()); n != 1 {
		t.Fatalf("the gateway has %d mappings, want the one of the lost reply", n)
	}
	remove()
	r.Internal = netip.MustParseAddrPort("127.0.0.1:8080") // the same host
	m, err := b.Map(t.Context(), r)
	if err != nil {
		t.Fatalf("repeated request: %v", err)
	}
	other := open(t, pcp.Config{Gateway: gw.Addr()})
	if _, err := other.Map(t.Context(), r); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("request of another process: %v, want a refusal", err)
	}
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// TestRemoteFilterNotRenewed checks that a mapping for one peer is not renewed as a
// mapping for all peers, because the filter for that peer would remain.
func TestRemoteFilterNotRenewed(t *testing.T) {
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
		t.Errorf("for all peers: %v, %v; want a refusal", m, err)
	}
}

func TestRefusals(t *testing.T) {
	for code, kind := range map[pcp.ResultCode]error{
		pcp.NotAuthorized:       backends.ErrNotAuthorized,
		pcp.MalformedRequest:    backends.ErrMalformed,
		pcp.UnsupportedOpcode:   backends.ErrUnsupported,
		pcp.NetworkFailure:      backends.ErrNetworkFailure,
		pcp.NoResources:         backends.ErrNoResources,
		pcp.UnsupportedProtocol: backends.ErrUnsupported,
		pcp.UserExceededQuota:   backends.ErrNoResources,
		pcp.AddressMismatch:     backends.ErrPrivateWAN,
		77:                      backends.ErrMalformed,
	} {
		t.Run(code.String(), func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			injectRefusals(gw, code, 90*time.Second)
			b := open(t, pcp.Config{Gateway: gw.Addr(), Transmissions: 3}) // an implausible response counts after three repetitions
			_, err := b.Map(t.Context(), webRequest)
			var refusal *pcp.ResultError
			if !errors.Is(err, kind) || !errors.As(err, &refusal) || refusal.Code != code || refusal.Lifetime != 90*time.Second {
				t.Fatalf("Map: %v, want %v", err, kind)
			}
			sent := len(gw.Requests())
			if _, err := b.Map(t.Context(), webRequest); !errors.Is(err, kind) {
				t.Errorf("again: %v, want %v", err, kind)
			}
			if n := len(gw.Requests()); n != sent {
				t.Errorf("the same request was sent %d more times", n-sent)
			}
			other := webRequest
			other.Internal = netip.AddrPortFrom(netip.Addr{}, 9090)
			if _, err := b.Map(t.Context(), other); !errors.Is(err, kind) || len(gw.Requests()) == sent {
				t.Errorf("another request: %v, sent %d", err, len(gw.Requests())-sent)
			}
		})
	}
}

func TestRequestOptions(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true})
	b := open(t, pcp.Config{Gateway: gw.Addr(), Transmissions: 3})
	r := webRequest
	r.Internal = netip.MustParseAddrPort("192.0.2.9:8080")
	r.External = netip.AddrPortFrom(netip.Addr{}, 80)
	r.Remote, r.Exact, r.Description = netip.MustParseAddrPort("198.51.100.7:99"), true, "web\x00 server"
	_, _ = b.Map(t.Context(), r)
	got := mapRequests(t, gw)[0].Options
	if got.ThirdParty != r.Internal.Addr() || !got.PreferFailure || got.Description != "web? server" {
		t.Errorf("options %+v", got)
	}
	want := []pcp.Filter{{}, {Prefix: netip.MustParsePrefix("198.51.100.7/32"), Port: 99}}
	if !slices.Equal(got.Filters, want) {
		t.Errorf("filters %v, want %v", got.Filters, want)
	}
	_, _ = b.Renew(t.Context(), backends.Mapping{
		Protocol: r.Protocol, Internal: r.Internal, External: r.External, Remote: r.Remote, Token: backends.NewToken(make([]byte, 12)),
	}, r)
	if f := lastMapRequest(t, gw).Options.Filters; !slices.Equal(f, want) {
		t.Errorf("filters of a renewal %v", f)
	}
	// After two requests without a reply, only the essential options remain.
	for i, q := range mapRequests(t, gw) {
		o, optional := q.Options, i%5 < 2
		if o.ThirdParty != r.Internal.Addr() || !slices.Equal(o.Filters, want) || o.PreferFailure != optional || (o.Description != "") != optional {
			t.Errorf("request %d has the options %+v", i, o)
		}
	}
}

// TestOptionsIgnoredAndRefused checks that a refusal of a request without options shows too
// that the server ignores options.
func TestOptionsIgnoredAndRefused(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{DropOptions: true}}})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return len(r.Raw) == 60 }, Result: int(pcp.UserExceededQuota)})
	b := open(t, pcp.Config{Gateway: gw.Addr(), Transmissions: 4})
	r := webRequest
	r.Description = "a web server"
	for _, want := range []int{3, 1} {
		before := len(gw.Requests())
		if _, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrNoResources) {
			t.Error(err)
		}
		if n := len(gw.Requests()) - before; n != want {
			t.Errorf("%d requests, want %d", n, want)
		}
		r.Internal = netip.AddrPortFrom(r.Internal.Addr(), r.Internal.Port()+1) // the refusal is for one port
	}
}

// TestOptionsIgnored checks a server that does not respond to requests with options.
// The first mapping is granted without them, and later requests have none.
func TestOptionsIgnored(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool {
			q, err := pcp.ParseMapRequest(r.Raw)
			return err == nil && len(r.Raw) != 60 && q.Protocol == backends.TCP
		},
		Drop: true,
	})
	b := open(t, pcp.Config{Gateway: gw.Addr(), Transmissions: 4})
	r := webRequest
	r.Description, r.Exact, r.External = "a web server", true, netip.AddrPortFrom(netip.Addr{}, 8080)
	for _, want := range []int{3, 1} {
		before := len(gw.Requests())
		m, err := b.Map(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(gw.Requests()) - before; n != want {
			t.Errorf("%d requests, want %d", n, want)
		}
		if err := b.Unmap(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
}

// TestDescriptionRefused checks that a request is sent again without its
// description if the server refuses it, and that later requests have no
// description.
func TestDescriptionRefused(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool {
			q, err := pcp.ParseMapRequest(r.Raw)
			return err == nil && q.Options.Description != ""
		},
		Result: int(pcp.UnsupportedOption),
	})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	r := webRequest
	r.Description = "a web server"
	for _, port := range []uint16{8080, 8081} {
		r.Internal = netip.AddrPortFrom(netip.Addr{}, port)
		if _, err := b.Map(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(gw.Requests()); n != 3 {
		t.Errorf("%d requests, want three", n)
	}
}

// TestPrivateWAN checks that the error has the external address of a server that
// puts it into a refusal.
func TestPrivateWAN(t *testing.T) {
	for gatewayAddr, text := range map[string]string{"10.66.66.1": "behind another router", "100.64.0.1": "behind the provider's NAT"} {
		gw := start(t, gatewaytest.Config{})
		injectReplies(gw, func(request []byte) [][]byte {
			r, err := pcp.ParseMapRequest(request)
			if err != nil {
				return nil
			}
			b, _ := pcp.MapResponse{
				Result: pcp.NoResources, Lifetime: 30 * time.Second, Nonce: r.Nonce, Protocol: r.Protocol,
				InternalPort: r.InternalPort, External: netip.MustParseAddr(gatewayAddr),
			}.MarshalBinary()
			return [][]byte{b}
		})
		_, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), webRequest)
		if !errors.Is(err, backends.ErrPrivateWAN) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), gatewayAddr) {
			t.Errorf("%s: %v", gatewayAddr, err)
		}
	}
}

func TestNewInvalid(t *testing.T) {
	for name, config := range map[string]pcp.Config{
		"no gateway":             {},
		"different families":     {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), Source: netip.MustParseAddr("2001:db8::1")},
		"negative transmissions": {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), Transmissions: -1},
		"negative wait":          {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), FirstWait: -1},
	} {
		if _, err := pcp.New(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestFiltersCleared checks that a mapping that another process made for one peer
// permits all peers after it is mapped again without a peer.
func TestFiltersCleared(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr(), Nonce: func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
		return pcp.DeriveNonce([]byte("key"), gateway, p, internal)
	}})
	for _, step := range []struct {
		peer    string
		filters int
	}{{"45.45.45.7:0", 1}, {"45.45.45.8:0", 1}, {"", 0}} {
		r := webRequest
		if step.peer != "" {
			r.Remote = netip.MustParseAddrPort(step.peer)
		}
		if _, err := b.Map(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if e := gw.Table()[0]; len(e.Filters) != step.filters || step.filters > 0 && !e.Filters[0].Prefix.Contains(r.Remote.Addr()) {
			t.Errorf("for %q: filters %v", step.peer, e.Filters)
		}
	}
}

// TestLateRefusal checks that a late refusal of options is ignored if the current
// request has no options.
func TestLateRefusal(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	var first []byte
	gw.Inject(gatewaytest.Fault{Times: 1, Reply: func(request []byte) [][]byte {
		first = slices.Clone(request)
		b, _ := pcp.AppendErrorResponse(nil, request, pcp.MalformedOption, time.Minute, time.Hour)
		return [][]byte{b}
	}})
	gw.Inject(gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte {
		b, _ := pcp.AppendErrorResponse(nil, first, pcp.MalformedOption, time.Minute, time.Hour)
		return slices.Repeat([][]byte{b}, 8) // replies to the retransmissions of the first request
	}})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	r := webRequest
	r.Description = "a server"
	if m, err := b.Map(t.Context(), r); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Map: %v, %v", m, err)
	}
}

// TestUnmapShortensLifetime checks that Unmap succeeds if the server repeatedly
// answers a deletion with the remaining lifetime.
func TestUnmapShortensLifetime(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := pcp.New(pcp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	m, err := b.Map(t.Context(), webRequest)
	if err != nil {
		t.Fatal(err)
	}
	injectReplies(gw, func(request []byte) [][]byte {
		response, _ := pcp.MapResponse{
			Lifetime: 4 * time.Minute, Nonce: pcp.Nonce(m.Token.Bytes()), Protocol: m.Protocol, InternalPort: m.Internal.Port(),
		}.MarshalBinary()
		return [][]byte{response}
	})
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Errorf("Unmap: %v", err)
	}
}

// TestUnmapRefusedPinhole checks that Unmap reduces the lifetime of a pinhole that
// the server refuses to delete.
func TestUnmapRefusedPinhole(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	b := open(t, pcp.Config{Gateway: gw.Addr6()})
	m, err := b.Map(t.Context(), webRequest)
	if err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return r.Op == "unmap" }, Result: int(pcp.NotAuthorized),
	})
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Errorf("Unmap: %v", err)
	}
	if r := lastMapRequest(t, gw); r.Lifetime != time.Second || string(r.Nonce[:]) != string(m.Token.Bytes()) {
		t.Errorf("requested lifetime %v", r.Lifetime)
	}
	m.Token = backends.Token{}
	if err := b.Unmap(t.Context(), m); err == nil {
		t.Error("Unmap without a token succeeded")
	}
}
