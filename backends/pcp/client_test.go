package pcp_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestOtherVersions checks the errors for responses of gateways that do not support
// version 2.
func TestOtherVersions(t *testing.T) {
	for name, test := range map[string]struct {
		reply   string
		version uint8
	}{
		"NAT-PMP, standard form":     {"00000001 000004d2", 0},
		"NAT-PMP, with the opcode":   {"00810001 000004d2", 0},
		"NAT-PMP, without its epoch": {"00810001", 0},
		"version 1":                  {"01810001 00000708 000004d2 00000000 00000000 00000000", 1},
	} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			reply := unhex(test.reply)
			injectReplies(gw, func([]byte) [][]byte { return [][]byte{reply} })
			_, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), webRequest)
			var version *pcp.VersionError
			if !errors.Is(err, backends.ErrUnsupported) || !errors.As(err, &version) || version.Version != test.version {
				t.Errorf("Map: %v, want version %d", err, test.version)
			}
		})
	}
}

// TestIgnoredDatagrams checks that a wrong datagram does not end the wait for the
// reply.
func TestIgnoredDatagrams(t *testing.T) {
	setByte := func(at int, with byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = with; return b }
	}
	for name, change := range map[string]func([]byte) []byte{
		"another nonce":                         func(b []byte) []byte { b[24] ^= 0xff; return b },
		"another protocol":                      setByte(36, 17),
		"another internal port":                 setByte(41, 0xff),
		"another opcode":                        setByte(1, 0x82),
		"a request":                             setByte(1, 0x01),
		"another version":                       setByte(0, 3),
		"a size that is not a multiple of four": func(b []byte) []byte { return append(b, 0) },
		"truncated":                             func(b []byte) []byte { return b[:56] },
		"version 2 refused":                     setByte(3, 1),
	} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			injectReplies(gw, func(request []byte) [][]byte {
				r, err := pcp.ParseMapRequest(request)
				if err != nil {
					return nil
				}
				response := func(port uint16) []byte {
					b, err := pcp.MapResponse{
						Lifetime: r.Lifetime, Nonce: r.Nonce, Protocol: r.Protocol, InternalPort: r.InternalPort,
						ExternalPort: port, External: gw.External(),
					}.MarshalBinary()
					if err != nil {
						return nil
					}
					return b
				}
				return [][]byte{change(response(6666)), response(7777)}
			})
			m, err := open(t, pcp.Config{Gateway: gw.Addr()}).Map(t.Context(), webRequest)
			if err != nil || m.External.Port() != 7777 {
				t.Errorf("Map: %v, %v", m.External, err)
			}
		})
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

// TestProbeWithoutAnnounce checks that Probe finds a server that does not respond to
// ANNOUNCE, and creates no mapping.
func TestProbeWithoutAnnounce(t *testing.T) {
	for name, unknown := range map[string]bool{"success": false, "no resources": true} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NoAnnounce: true, DeleteUnknownNoResources: unknown}}})
			if err := open(t, pcp.Config{Gateway: gw.Addr()}).Probe(t.Context()); err != nil {
				t.Errorf("Probe: %v", err)
			}
			for _, r := range gw.Requests() {
				if r.Op != "announce" && r.Op != "unmap" {
					t.Errorf("Probe sent %s", r.Op)
				}
			}
		})
	}
	gw := start(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	if err := open(t, pcp.Config{Gateway: gw.Addr()}).Probe(t.Context()); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Probe without a server: %v", err)
	}
}

// TestUnmapAbsent checks that Unmap succeeds if the mapping is absent, and fails if it
// has another nonce.
func TestUnmapAbsent(t *testing.T) {
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{DeleteUnknownNoResources: true}}})
	c := open(t, pcp.Config{Gateway: gw.Addr()}).Client()
	if err := c.Unmap(t.Context(), backends.TCP, 8080, pcp.Nonce{1}); err != nil {
		t.Errorf("Unmap of an absent mapping: %v", err)
	}
	if r, err := c.Map(t.Context(), pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080}); err != nil {
		t.Errorf("Map with lifetime 0: %+v, %v", r, err)
	}
	if _, err := c.Map(t.Context(), pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := c.Unmap(t.Context(), backends.TCP, 8080, pcp.Nonce{1}); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Unmap with another nonce: %v, want ErrNotAuthorized", err)
	}
}

// TestPreferFailureIgnored checks that Map with PreferFailure fails and leaves nothing
// behind if the server grants another port or address.
func TestPreferFailureIgnored(t *testing.T) {
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{PreferFailureIgnored: true}}})
	c := open(t, pcp.Config{Gateway: gw.Addr()}).Client()
	r := pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080, Lifetime: time.Hour, Options: pcp.Options{PreferFailure: true}}
	if _, err := c.Map(t.Context(), r); err != nil {
		t.Fatalf("Map of a free port: %v", err)
	}
	r.InternalPort = 8081
	if m, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrConflict) || len(gw.Table()) != 1 {
		t.Errorf("Map of a taken port: %+v, %v, the gateway has %v", m, err, gw.Table())
	}
	r.ExternalPort, r.External = 8081, netip.MustParseAddr("45.45.45.99")
	if m, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrConflict) || len(gw.Table()) != 1 {
		t.Errorf("Map at another address: %+v, %v, the gateway has %v", m, err, gw.Table())
	}
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "unmap" }, Result: int(pcp.NotAuthorized)})
	if _, err := c.Map(t.Context(), r); !errors.Is(err, backends.ErrConflict) || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Map whose grant is not deleted: %v", err)
	}
}

// TestMapAll checks that MapAll maps all ports of a protocol or of all protocols,
// if the server permits it, and deletes only that mapping.
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
	withoutAllPorts := open(t, pcp.Config{Gateway: start(t, gatewaytest.Config{}).Addr()}).Client()
	if r, err := withoutAllPorts.MapAll(t.Context(), backends.TCP, time.Hour, pcp.Nonce{}); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("a server that does not permit it: %+v, %v", r, err)
	}
}

// TestLateReply checks that a late reply to a map request is not accepted as the
// reply to a deletion, which is sent again.
func TestLateReply(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b := open(t, pcp.Config{Gateway: gw.Addr()})
	m, err := b.Map(t.Context(), webRequest)
	if err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte {
		lateReply, _ := pcp.MapResponse{
			Lifetime: time.Hour, Nonce: pcp.Nonce(m.Token.Bytes()), Protocol: m.Protocol, InternalPort: m.Internal.Port(),
			ExternalPort: m.External.Port(), External: m.External.Addr(),
		}.MarshalBinary()
		return [][]byte{lateReply}
	}})
	if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestOptionRefused checks that a refusal of options is accepted only if the
// request has options.
func TestOptionRefused(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	injectRefusals(gw, pcp.UnsupportedOption, time.Minute)
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
		t.Errorf("with a description: %v", err)
	}
}

// TestAddressMismatch checks that a request is not repeated from the same address
// after AddressMismatch: it would get the same response.
func TestAddressMismatch(t *testing.T) {
	for name, request := range map[string]func(context.Context, *pcp.Client) error{
		"announce": func(ctx context.Context, c *pcp.Client) error {
			_, err := c.Announce(ctx)
			return err
		},
		"map": func(ctx context.Context, c *pcp.Client) error {
			_, err := c.Map(ctx, pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour})
			return err
		},
		"peer": func(ctx context.Context, c *pcp.Client) error {
			_, err := c.Peer(ctx, pcp.PeerRequest{
				Protocol: backends.UDP, InternalPort: 40000, Lifetime: time.Minute, Remote: netip.MustParseAddrPort("198.51.100.9:3478"),
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw := start(t, gatewaytest.Config{})
			injectRefusals(gw, pcp.AddressMismatch, time.Minute)
			// With a wait of one hour, a second request cannot be a retransmission.
			c, err := pcp.NewClient(pcp.Config{Gateway: gw.Addr(), FirstWait: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			var refusal *pcp.ResultError
			if err := request(t.Context(), c); !errors.As(err, &refusal) || refusal.Code != pcp.AddressMismatch {
				t.Errorf("%v, want the refusal", err)
			}
			if n := len(gw.Requests()); n != 1 {
				t.Errorf("%d requests from one address, want 1", n)
			}
		})
	}
}
