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
)

// A server that saw another address than the request names is asked once. A
// second request from the same address would get the same answer.
func TestAddressMismatch(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *pcp.Client) error{
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
			refuses(gw, pcp.AddressMismatch, time.Minute)
			// With an hour to wait, no request is a retransmission.
			c, err := pcp.NewClient(pcp.Config{Gateway: gw.Addr(), FirstWait: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			var refusal *pcp.ResultError
			if err := ask(t.Context(), c); !errors.As(err, &refusal) || refusal.Code != pcp.AddressMismatch {
				t.Errorf("%v, want the refusal", err)
			}
			if n := len(gw.Requests()); n != 1 {
				t.Errorf("%d requests from one address, want 1", n)
			}
		})
	}
}
