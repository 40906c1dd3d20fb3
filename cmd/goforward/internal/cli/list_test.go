package cli

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
)

// lister is a NAT-PMP backend that can list a table.
type lister struct {
	*natpmp.Backend
	failure error
}

var _ backends.Lister = lister{}

var listed = []backends.Entry{
	{Enabled: true, Mapping: backends.Mapping{
		Protocol: backends.TCP, External: netip.MustParseAddrPort("45.45.45.1:80"), Internal: netip.MustParseAddrPort("127.0.0.1:8080"),
		Lifetime: time.Hour, Description: "web\x1b]0;pwned\x07\n", Backend: "natpmp",
	}},
	{Mapping: backends.Mapping{
		Protocol: backends.UDP, External: netip.MustParseAddrPort("45.45.45.1:53"), Internal: netip.MustParseAddrPort("192.168.1.8:53"),
		Remote: netip.MustParseAddrPort("198.51.100.7:0"), Lifetime: backends.Forever, Backend: "natpmp",
	}},
}

func (l lister) List(context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for _, e := range listed {
			if !yield(e, nil) {
				return
			}
		}
		if l.failure != nil {
			yield(backends.Entry{}, l.failure)
		}
	}
}

func (l lister) EntryAt(context.Context, int) (backends.Entry, error) {
	return backends.Entry{}, backends.ErrInvalid
}

// TestSearchTimeout checks that a search is as patient as in map if the command needs the device,
// or if the device is known to exist.
func TestSearchTimeout(t *testing.T) {
	t.Parallel()
	gw, device := router(t, gatewaytest.Config{}), router(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	for name, tt := range map[string]struct {
		gw   *gatewaytest.Gateway
		args []string
		want time.Duration // 0: the same as in map
	}{
		"list":                     {gw, []string{"list"}, 0},
		"unmap":                    {gw, []string{"unmap", "8080"}, searchTimeout},
		"unmap, with --timeout":    {gw, []string{"unmap", "8080", "--timeout", "20"}, 10 * time.Second},
		"unmap, with UPnP only":    {device, []string{"unmap", "8080"}, 0},
		"gateways, with --timeout": {gw, []string{"gateways", "--timeout", "20"}, 0},
	} {
		got := time.Duration(-1)
		result := run(t, func(a *app) {
			a.protocols = slices.Clone(protocols)
			for i, p := range protocols {
				a.protocols[i].open = func(a *app, target target) (probedBackend, error) {
					if p.name == upnp.Name {
						got = target.search
						target.igdURL = tt.gw.UPnP().DescriptionURL()
					}
					return p.open(a, target)
				}
			}
		}, append(tt.args, "-g", tt.gw.Addr().String(), "--ssdp", tt.gw.SSDP().String(), "--notify", "127.0.0.1:0", "--announce", "127.0.0.1:0")...)
		if got != tt.want || result.code != exitDone {
			t.Errorf("%s: %v, want %v: %+v", name, got, tt.want, result)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	with := func(failure error) func(*app) {
		return func(a *app) {
			a.protocols = []protocol{{name: "natpmp", title: "NAT-PMP", open: func(_ *app, t target) (probedBackend, error) {
				b, err := natpmp.New(natpmp.Config{Gateway: t.gateway})
				return probedBackend{Backend: lister{b, failure}, probe: b.ExternalAddr}, err
			}}}
		}
	}
	const want = `PROTOCOL  EXTERNAL       INTERNAL        OURS  FROM          REMAINING  ENABLED  DESCRIPTION
tcp       45.45.45.1:80  127.0.0.1:8080  yes   -             1h0m0s     yes      web\x1b]0;pwned\x07\n
udp       45.45.45.1:53  192.168.1.8:53  no    198.51.100.7  no end     no       -
`
	if got := run(t, with(nil), "list", "-g", gw.Addr().String()); got != (cmdResult{exitDone, want, ""}) {
		t.Errorf("unexpected result: %+v", got)
	}
	// If the table ends with an error, the entries before it are printed.
	if got := run(t, with(backends.ErrMalformed), "list", "-g", gw.Addr().String()); got.stdout != want || got.code != exitOther {
		t.Errorf("unexpected result: %+v", got)
	}
	const wantJSON = `{"event":"entry","protocol":"tcp","external":{"ip":"45.45.45.1","port":80},"internal":{"ip":"127.0.0.1","port":8080},` +
		`"backend":"natpmp","gateway":"","lifetime_s":3600,"scope":"public","description":"web\u001b]0;pwned\u0007\n","enabled":true,"ours":true}
{"event":"entry","protocol":"udp","external":{"ip":"45.45.45.1","port":53},"internal":{"ip":"192.168.1.8","port":53},"remote":{"ip":"198.51.100.7","port":0},` +
		`"backend":"natpmp","gateway":"","scope":"public","enabled":false,"ours":false}
`
	if got := run(t, with(nil), "list", "-g", gw.Addr().String(), "--json"); got != (cmdResult{exitDone, wantJSON, ""}) {
		t.Errorf("unexpected result: %+v", got)
	}
}
