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
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// replies answers every request with what f makes of it.
func replies(gw *gatewaytest.Gateway, f func(request []byte) [][]byte) {
	gw.Inject(gatewaytest.Fault{Reply: f})
}

// refuses answers every request with a result.
func refuses(gw *gatewaytest.Gateway, code pcp.ResultCode, lifetime time.Duration) {
	replies(gw, func(request []byte) [][]byte {
		b, err := pcp.AppendErrorResponse(nil, request, code, lifetime, time.Hour)
		if err != nil {
			return nil
		}
		return [][]byte{b}
	})
}

var web = backends.Request{Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), Lifetime: time.Hour}

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
			refuses(gw, code, 90*time.Second)
			b := open(t, pcp.Config{Gateway: gw.Addr(), Transmissions: 3}) // one that makes no sense has to insist
			_, err := b.Map(t.Context(), web)
			var refusal *pcp.ResultError
			if !errors.Is(err, kind) || !errors.As(err, &refusal) || refusal.Code != code || refusal.Lifetime != 90*time.Second {
				t.Fatalf("Map: %v, want %v", err, kind)
			}
			asked := len(gw.Requests())
			if _, err := b.Map(t.Context(), web); !errors.Is(err, kind) {
				t.Errorf("again: %v, want %v", err, kind)
			}
			if n := len(gw.Requests()); n != asked {
				t.Errorf("the same request was sent again, %d times", n-asked)
			}
			other := web
			other.Internal = netip.AddrPortFrom(netip.Addr{}, 9090)
			if _, err := b.Map(t.Context(), other); !errors.Is(err, kind) || len(gw.Requests()) == asked {
				t.Errorf("another request: %v, sent %d", err, len(gw.Requests())-asked)
			}
		})
	}
}

// The answers of gateways that do not speak version 2.
func TestOtherVersions(t *testing.T) {
	for name, test := range map[string]struct {
		reply   string
		version uint8
	}{
		"NAT-PMP, by the standard":   {"00000001 000004d2", 0},
		"NAT-PMP, with the opcode":   {"00810001 000004d2", 0},
		"NAT-PMP, without its epoch": {"00810001", 0},
		"version 1":                  {"01810001 00000708 000004d2 00000000 00000000 00000000", 1},
	} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			reply := unhex(test.reply)
			replies(gw, func([]byte) [][]byte { return [][]byte{reply} })
			_, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), web)
			var version *pcp.VersionError
			if !errors.Is(err, backends.ErrUnsupported) || !errors.As(err, &version) || version.Version != test.version {
				t.Errorf("Map: %v, want version %d", err, test.version)
			}
		})
	}
}

// A datagram that is not the answer does not end the wait for the answer.
func TestIgnored(t *testing.T) {
	spoil := func(at int, with byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = with; return b }
	}
	for name, change := range map[string]func([]byte) []byte{
		"another nonce":         spoil(24, 0xff),
		"another protocol":      spoil(36, 17),
		"another internal port": spoil(41, 0xff),
		"another opcode":        spoil(1, 0x82),
		"a request":             spoil(1, 0x01),
		"another version":       spoil(0, 3),
		"an odd size":           func(b []byte) []byte { return append(b, 0) },
		"cut short":             func(b []byte) []byte { return b[:56] },
		"our version refused":   spoil(3, 1),
	} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			replies(gw, func(request []byte) [][]byte {
				r, err := pcp.ParseMapRequest(request)
				if err != nil {
					return nil
				}
				answer := func(port uint16) []byte {
					b, err := pcp.MapResponse{
						Lifetime: r.Lifetime, Nonce: r.Nonce, Protocol: r.Protocol, InternalPort: r.InternalPort,
						ExternalPort: port, External: gw.External(),
					}.MarshalBinary()
					if err != nil {
						return nil
					}
					return b
				}
				return [][]byte{change(answer(6666)), answer(7777)}
			})
			m, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), web)
			if err != nil || m.External.Port() != 7777 {
				t.Errorf("Map: %v, %v", m.External, err)
			}
		})
	}
}

// last returns the last MAP request that the gateway saw.
func last(t *testing.T, gw *gatewaytest.Gateway) pcp.MapRequest {
	t.Helper()
	all := gw.Requests()
	r, err := pcp.ParseMapRequest(all[len(all)-1].Raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A renewal and a deletion carry the nonce; a renewal wishes for what it has,
// and a deletion for nothing (RFC 6887, sections 11.2.1 and 15).
func TestNonce(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	m, err := b.Map(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	made := last(t, gw)
	if string(made.Nonce[:]) != string(m.Token.Bytes()) || made.Nonce == (pcp.Nonce{}) {
		t.Error("the token is not the nonce")
	}
	if _, err := b.Renew(t.Context(), m, web); err != nil {
		t.Fatal(err)
	}
	if r := last(t, gw); r.Nonce != made.Nonce || r.External != m.External.Addr() || r.ExternalPort != m.External.Port() {
		t.Errorf("renewal wishes for %v:%d, has %v", r.External, r.ExternalPort, m.External)
	}
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if r := last(t, gw); r.Nonce != made.Nonce || r.Lifetime != 0 || r.ExternalPort != 0 || !r.External.IsUnspecified() {
		t.Errorf("deletion wishes for %v:%d for %v", r.External, r.ExternalPort, r.Lifetime)
	}
	m.Token = backends.Token{}
	if err := b.Unmap(t.Context(), m); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("deletion without a nonce: %v", err)
	}
}

// With a key, another process can take a mapping away that it knows only the
// internal port of; with another key it cannot.
func TestDerivedNonce(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	with := func(key string) *pcp.Backend {
		return open(t, pcp.Config{Gateway: gw.Addr(), Nonce: func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce([]byte(key), gateway, p, internal)
		}})
	}
	if _, err := with("mine").Map(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	known := backends.Mapping{Protocol: web.Protocol, Internal: web.Internal}
	if err := with("theirs").Unmap(t.Context(), known); !errors.Is(err, backends.ErrNotAuthorized) || len(gw.Table()) != 1 {
		t.Errorf("with another key: %v, the gateway has %v", err, gw.Table())
	}
	known.Internal = netip.MustParseAddrPort("127.0.0.1:8080") // this host, by its name
	if err := with("mine").Unmap(t.Context(), known); err != nil || len(gw.Table()) != 0 {
		t.Errorf("with the key: %v, the gateway has %v", err, gw.Table())
	}
}

func TestOptionsOnTheWire(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	r := web
	r.Internal = netip.MustParseAddrPort("192.0.2.9:8080")
	r.External = netip.AddrPortFrom(netip.Addr{}, 80)
	r.Remote, r.Exact, r.Description = netip.MustParseAddrPort("198.51.100.7:99"), true, "web\x00 server"
	_, _ = b.Map(t.Context(), r)
	got := last(t, gw).Options
	if got.ThirdParty != r.Internal.Addr() || !got.PreferFailure || got.Description != "web? server" {
		t.Errorf("options %+v", got)
	}
	want := []pcp.Filter{{}, {Prefix: netip.MustParsePrefix("198.51.100.7/32"), Port: 99}}
	if !slices.Equal(got.Filters, want) {
		t.Errorf("filters %v, want the old ones cleared and %v", got.Filters, want)
	}
	_, _ = b.Renew(t.Context(), backends.Mapping{
		Protocol: r.Protocol, Internal: r.Internal, External: r.External, Remote: r.Remote, Token: backends.NewToken(make([]byte, 12)),
	}, r)
	if f := last(t, gw).Options.Filters; !slices.Equal(f, want) {
		t.Errorf("filters of a renewal %v", f)
	}
}

// A server that refuses descriptions is asked without, and not bothered again.
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
	r := web
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

// A server that puts its own address into a refusal shows why.
func TestPrivateWAN(t *testing.T) {
	for own, text := range map[string]string{"10.66.66.1": "behind another router", "100.64.0.1": "behind the provider's NAT"} {
		gw := start(t, gatewaytest.Config{})
		replies(gw, func(request []byte) [][]byte {
			r, err := pcp.ParseMapRequest(request)
			if err != nil {
				return nil
			}
			b, _ := pcp.MapResponse{
				Result: pcp.NoResources, Lifetime: 30 * time.Second, Nonce: r.Nonce, Protocol: r.Protocol,
				InternalPort: r.InternalPort, External: netip.MustParseAddr(own),
			}.MarshalBinary()
			return [][]byte{b}
		})
		_, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), web)
		if !errors.Is(err, backends.ErrPrivateWAN) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), own) {
			t.Errorf("%s: %v", own, err)
		}
	}
}

func TestClient(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	c := open(t, pcp.Config{Gateway: gw.Addr()}).Client()
	if r, err := c.Announce(t.Context()); err != nil || r.Result != pcp.Success {
		t.Errorf("Announce: %+v, %v", r, err)
	}
	if err := c.Probe(t.Context()); err != nil {
		t.Errorf("Probe: %v", err)
	}
	r, err := c.Map(t.Context(), pcp.MapRequest{Protocol: backends.SCTP, InternalPort: 9, Lifetime: time.Hour})
	if err != nil || r.Protocol != backends.SCTP || r.ExternalPort == 0 {
		t.Fatalf("Map of SCTP: %+v, %v", r, err)
	}
	if err := c.Unmap(t.Context(), backends.SCTP, 9, r.Nonce); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
	if _, err := c.Map(t.Context(), pcp.MapRequest{Protocol: backends.TCP, Lifetime: time.Hour}); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Map of port 0: %v", err)
	}
	if p, err := c.Peer(t.Context(), pcp.PeerRequest{
		Protocol: backends.UDP, InternalPort: 40000, Lifetime: time.Minute, Remote: netip.MustParseAddrPort("198.51.100.9:3478"),
	}); err != nil || p.ExternalPort == 0 {
		t.Errorf("Peer: %+v, %v", p, err)
	}
}

// MapAll maps all ports of a protocol, or all of all, where a server allows that, and
// deletes just that.
func TestMapAll(t *testing.T) {
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{AllPorts: true}}})
	c := open(t, pcp.Config{Gateway: gw.Addr()}).Client()
	one, err := c.Map(t.Context(), pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []backends.Protocol{backends.UDP, 0} {
		r, err := c.MapAll(t.Context(), protocol, time.Hour, pcp.Nonce{})
		if err != nil || r.Protocol != protocol || r.InternalPort != 0 || r.ExternalPort != 0 || len(gw.Table()) != 2 {
			t.Fatalf("MapAll of protocol %d: %+v, %v; the gateway has %v", protocol, r, err, gw.Table())
		}
		if _, err := c.MapAll(t.Context(), protocol, 0, r.Nonce); err != nil || len(gw.Table()) != 1 || gw.Table()[0].External.Port() != one.ExternalPort {
			t.Errorf("MapAll with lifetime 0: %v; the gateway has %v", err, gw.Table())
		}
	}
	plain := open(t, pcp.Config{Gateway: start(t, gatewaytest.Config{}).Addr()}).Client()
	if r, err := plain.MapAll(t.Context(), backends.TCP, time.Hour, pcp.Nonce{}); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("a server that does not allow it: %+v, %v", r, err)
	}
}

func TestNewInvalid(t *testing.T) {
	for name, config := range map[string]pcp.Config{
		"no gateway":     {},
		"families":       {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), Source: netip.MustParseAddr("2001:db8::1")},
		"negative tries": {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), Transmissions: -1},
		"negative wait":  {Gateway: netip.MustParseAddrPort("192.0.2.1:0"), FirstWait: -1},
	} {
		if _, err := pcp.New(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// A mapping that another process made for one peer admits everybody once it is
// mapped anew for everybody.
func TestFiltersCleared(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr(), Nonce: func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
		return pcp.DeriveNonce([]byte("key"), gateway, p, internal)
	}})
	for _, step := range []struct {
		peer    string
		filters int
	}{{"45.45.45.7:0", 1}, {"45.45.45.8:0", 1}, {"", 0}} {
		r := web
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

// The late answer to a mapping request is not taken for that to the deletion,
// which is sent again.
func TestLateAnswer(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	m, err := b.Map(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte {
		late, _ := pcp.MapResponse{
			Lifetime: time.Hour, Nonce: pcp.Nonce(m.Token.Bytes()), Protocol: m.Protocol, InternalPort: m.Internal.Port(),
			ExternalPort: m.External.Port(), External: m.External.Addr(),
		}.MarshalBinary()
		return [][]byte{late}
	}})
	if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// A refusal of options that come late is not about a request that has none.
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
		return slices.Repeat([][]byte{b}, 8) // to the first request's repetitions
	}})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	r := web
	r.Description = "a server"
	if m, err := b.Map(t.Context(), r); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Map: %v, %v", m, err)
	}
}

// A refusal of options counts where there are some.
func TestOptionRefused(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	refuses(gw, pcp.UnsupportedOption, time.Minute)
	c, err := pcp.NewClient(pcp.Config{Gateway: gw.Addr(), FirstWait: 200 * time.Millisecond, Transmissions: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour}
	if _, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("without options: %v", err)
	}
	r.Options.Description = "a server"
	var refusal *pcp.ResultError
	if _, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrUnsupported) || !errors.As(err, &refusal) {
		t.Errorf("with one: %v", err)
	}
}

// A server that answers deletions with the time that is left means it, if it
// says it often.
func TestShortened(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := pcp.New(pcp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	m, err := b.Map(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	replies(gw, func(request []byte) [][]byte {
		left, _ := pcp.MapResponse{
			Lifetime: 4 * time.Minute, Nonce: pcp.Nonce(m.Token.Bytes()), Protocol: m.Protocol, InternalPort: m.Internal.Port(),
		}.MarshalBinary()
		return [][]byte{left}
	})
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Errorf("Unmap: %v", err)
	}
}

// A pinhole of ours that the server does not delete is shortened.
func TestPinholeNotDeleted(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	b := open(t, pcp.Config{Gateway: gw.Addr6()})
	m, err := b.Map(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return r.Op == "unmap" }, Result: int(pcp.NotAuthorized),
	})
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Errorf("Unmap: %v", err)
	}
	if r := last(t, gw); r.Lifetime != time.Second || string(r.Nonce[:]) != string(m.Token.Bytes()) {
		t.Errorf("asked for %v", r.Lifetime)
	}
	m.Token = backends.Token{}
	if err := b.Unmap(t.Context(), m); err == nil {
		t.Error("a pinhole of nobody known was taken away")
	}
}
