package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

// hasPublicAddress reports whether this host has a public address, so that it needs no gateway.
func (a *app) hasPublicAddress() bool {
	return backends.ScopeOf(a.currentRoute(&a.settings).local) == backends.ScopePublic
}

// gatewayTable is the table of a gateway.
type gatewayTable struct {
	app       *app
	entries   []backends.Entry
	local     netip.Addr // the address of this host in the table
	deviceURL string     // URL of the UPnP device that has the table
	complete  bool       // the gateway lists its whole table
}

// readTable reads the table of the gateway, if it lists its mappings. IPv6 firewalls do not list
// their pinholes.
func (a *app) readTable(ctx context.Context, specs []*spec) (*gatewayTable, error) {
	t := &gatewayTable{app: a}
	if specs[0].ipv6 {
		return t, a.settings.checkSource()
	}
	return t, a.withBackends(ctx, query{
		options: specs[0].gatewayOptions(), timeout: listTimeout, sufficient: isLister,
		do: func(ctx context.Context, result *probeResult) error {
			for _, b := range result.available {
				if l, ok := b.Backend.(backends.Lister); ok {
					t.read(ctx, b, l)
					break
				}
			}
			return ctx.Err()
		},
	})
}

func (t *gatewayTable) read(ctx context.Context, b availableBackend, l backends.Lister) {
	t.local, t.complete = b.localAddr, true
	for e, err := range l.List(ctx) {
		if err != nil {
			t.complete = false
			break
		}
		t.entries = append(t.entries, e)
	}
	if device, is := b.Backend.(*upnp.Backend); is {
		t.deviceURL = device.DeviceURL()
	}
}

// checksFor returns a check for each entry to this host that the port names: as the internal
// port, or else as the external one.
func (t *gatewayTable) checksFor(s *spec) (out []*portCheck) {
	find := func(matches func(backends.Mapping) bool) {
		for _, e := range t.entries {
			m := e.Mapping
			if !t.isOurs(m, s) || !matches(m) {
				continue
			}
			if m.Remote.Addr().IsValid() {
				t.app.messagef("%s: the gateway admits only %s.\n", mappingText([]backends.Mapping{m}), endpointText(m.Remote))
			}
			if !e.Enabled {
				t.app.messagef("%s: the gateway has disabled this entry.\n", mappingText([]backends.Mapping{m}))
			}
			target := t.app.reachTarget(m)
			target.UPnPURL = t.deviceURL
			out = append(out, &portCheck{spec: s, mapping: m, target: target})
		}
	}
	find(func(m backends.Mapping) bool {
		return m.Internal.Port() == s.internal && (s.external == 0 || s.external == m.External.Port())
	})
	if len(out) == 0 && s.external == 0 {
		find(func(m backends.Mapping) bool { return m.External.Port() == s.internal })
	}
	return out
}

// isOurs reports whether an entry forwards the protocol to this host.
func (t *gatewayTable) isOurs(m backends.Mapping, s *spec) bool {
	return m.Internal.Addr().IsValid() && m.Internal.Addr() == t.local && m.Protocol == s.protocols[0]
}

// conflict returns an error if an entry to this host has one of the ports, but not both: a request
// for the mapping could replace the entry.
func (t *gatewayTable) conflict(s *spec) error {
	for _, e := range t.entries {
		if m := e.Mapping; t.isOurs(m, s) && (m.Internal.Port() == s.internal || m.External.Port() == s.external) {
			return fmt.Errorf("%w: the gateway has %s instead%sgoforward verify %d", backends.ErrConflict, mappingText([]backends.Mapping{m}), arrow, m.Internal.Port())
		}
	}
	return nil
}

// reachTarget returns what is to be measured for a mapping.
func (a *app) reachTarget(m backends.Mapping) reach.Target {
	t := reach.Target{Protocol: m.Protocol, External: m.External, Internal: m.Internal}
	if m.Backend != gateway.Direct {
		t.Gateway, t.Interface = m.Gateway.Addr(), a.currentRoute(&a.settings).iface
		t.UPnPURL, t.SSDP = a.settings.igd, a.settings.ssdp
	}
	return t
}

// requestMissing requests the mappings that the table does not have. The returned function
// restores the table: it deletes these mappings. If the gateway does not list its table, they may
// have existed before, and stay.
func (a *app) requestMissing(ctx context.Context, table *gatewayTable, specs []*spec, missing []int) ([]*portCheck, func() error, error) {
	config := a.config()
	config.NonceKey, config.CloseTimeout = a.nonceKey(), cmp.Or(a.settings.timeout, unmapTimeout)
	f, err := forward.New(config)
	if err != nil {
		return nil, nil, err
	}
	var wanted []*spec
	for _, i := range missing {
		wanted = append(wanted, specs[i])
	}
	options := func(i int) []forward.Option {
		all := wanted[i].options()
		if table.complete {
			all = append(all, forward.Lifetime(temporaryLifetime))
		}
		return all
	}
	var all []*portCheck
	var failures mapErrors
	for i, one := range enableAll(ctx, f, wanted, options) {
		if <-one.done; one.err != nil {
			failures = append(failures, mapError{one.spec, one.err})
			continue
		}
		c := &portCheck{spec: one.spec, held: one.mapping}
		c.enable = func(ctx context.Context) (*forward.Mapping, error) {
			return f.Enable(ctx, append(options(i), forward.External(c.mapping.External.Port()))...)
		}
		c.refresh(a)
		all = append(all, c)
	}
	end := func() error { return a.endRequested(f, all, table.complete) }
	if len(failures) > 0 {
		if err := end(); err != nil {
			a.failuref("%s\n", oneLine(errorText(err)))
		}
		return nil, nil, a.mapFailure(wanted, failures)
	}
	return all, end, nil
}

// refresh sets what is measured to what is granted now. If the mapping is lost, the last grant
// stays.
func (c *portCheck) refresh(a *app) {
	if c.held == nil {
		return
	}
	if grants := c.held.Grants(); len(grants) > 0 {
		c.mapping = grants[0]
		c.target = a.reachTarget(c.mapping)
	}
}

// temporaryLifetime is the lifetime of a mapping that did not exist before. It is renewed as long as
// the command runs.
const temporaryLifetime = 10 * time.Minute

// endRequested deletes the requested mappings, or leaves them if they may have existed before.
func (a *app) endRequested(f *forward.Forwarder, all []*portCheck, remove bool) error {
	for _, c := range all {
		if remove || c.mapping.Backend == gateway.Direct {
			continue
		}
		expires := c.held.Expires()
		c.held.Leave()
		a.messagef("%s stays, %s: the gateway does not list its mappings, so it may have existed before. To delete it: goforward unmap %s\n",
			mappingText([]backends.Mapping{c.mapping}), expiryText(expires), a.portArguments([]*portCheck{c}))
	}
	a.remember(f)
	if err := f.Close(); err != nil { // it deletes the others at the same time, and is bounded
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	return nil
}
