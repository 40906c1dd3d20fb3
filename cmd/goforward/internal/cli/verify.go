package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

func (a *app) verifyCommand() *cobra.Command {
	var (
		s spec
		v verifyFlags
	)
	cmd := &cobra.Command{
		Use:               "verify [EXTERNAL:]INTERNAL[/PROTOCOL]... | EXTERNAL INTERNAL",
		Short:             "Measure whether forwarded ports are reachable",
		Long:              verifyHelp,
		Example:           verifyExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.setFamily(&s); err != nil {
				return err
			}
			specs, err := s.verifySpecs(args)
			if err != nil {
				return err
			}
			a.spec = specs[0]
			if s := specs[0]; s.pair && s.external != 0 && s.external != s.internal {
				a.messagef("Two plain numbers are the external and the internal port. To measure both, add a protocol: %d %d/%s.\n", s.external, s.internal, s.protocols[0])
			}
			if err := a.checkVia(v.via); err != nil {
				return err
			}
			if v.every != 0 && v.usesPhone() {
				return usagef("--every and --via phone exclude each other: a person opens the URL only once")
			}
			if v.noRepair && v.every == 0 {
				return usagef("--no-repair needs --every")
			}
			return a.verify(cmd.Context(), specs, &v)
		},
	}
	s.registerProtocol(cmd)
	cmd.Flags().BoolVarP(&s.ipv6, "ipv6", "6", false, "measure the pinhole for this port in the gateway's IPv6 firewall")
	v.register(cmd)
	return cmd
}

// verifySpecs returns a spec for each port and protocol that the arguments name.
func (s *spec) verifySpecs(args []string) (out []*spec, err error) {
	specs, err := s.parseArgs(args)
	if err != nil {
		return nil, err
	}
	for _, one := range specs {
		if one.internal == 0 {
			return nil, usagef("no port is named: name the port on which the program listens, as in goforward verify 8080")
		}
		for _, p := range one.protocols {
			if p != backends.TCP && p != backends.UDP {
				return nil, usagef("verify measures TCP and UDP ports, not %v", p)
			}
			single := *one
			single.protocols = []backends.Protocol{p}
			out = append(out, &single)
		}
	}
	return out, nil
}

// portCheck is a port that is measured, and the last result.
type portCheck struct {
	spec    *spec
	mapping backends.Mapping // the entry of the gateway's table, or the grant
	held    *forward.Mapping // the mapping if this command requested it; nil: an entry of the table
	enable  func(context.Context) (*forward.Mapping, error)
	target  reach.Target

	result    reach.Result
	isKnown   bool // result is valid
	wasProven bool // the last verdict that was known was Reachable
	repaired  bool // it was mapped again since then
}

// verify measures ports, and leaves the gateway's table as it found it.
func (a *app) verify(ctx context.Context, specs []*spec, v *verifyFlags) error {
	table, err := a.readTable(ctx, specs)
	if err != nil && (!errors.Is(err, forward.ErrNoGateway) || !a.hasPublicAddress()) {
		return err
	}
	byArgument := make([][]*portCheck, len(specs))
	var missing []int
	for i, s := range specs {
		if byArgument[i] = table.checksFor(s); len(byArgument[i]) > 0 {
			continue
		}
		if err := table.conflict(s); err != nil {
			return err
		}
		missing = append(missing, i)
	}
	end := func() error { return nil }
	if len(missing) > 0 {
		var requested []*portCheck
		if requested, end, err = a.requestMissing(ctx, table, specs, missing); err != nil {
			return err
		}
		for j, i := range missing {
			byArgument[i] = requested[j : j+1]
		}
	}
	err = a.measureRounds(ctx, slices.Concat(byArgument...), v)
	if endErr := end(); endErr != nil {
		return endErr
	}
	return err
}

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
	var all []*portCheck
	var failures mapErrors
	for _, one := range enableAll(ctx, f, wanted, func(i int) []forward.Option { return wanted[i].options() }) {
		if <-one.done; one.err != nil {
			failures = append(failures, mapError{one.spec, one.err})
			continue
		}
		c := &portCheck{spec: one.spec, held: one.mapping}
		c.enable = func(ctx context.Context) (*forward.Mapping, error) {
			options := append(one.spec.options(), forward.External(c.mapping.External.Port()))
			return f.Enable(ctx, options...)
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

// endRequested deletes the requested mappings, or leaves them if they may have existed before.
func (a *app) endRequested(f *forward.Forwarder, all []*portCheck, remove bool) error {
	var errs []error
	for _, c := range all {
		if remove || c.mapping.Backend == gateway.Direct {
			if err := c.held.Close(); err != nil {
				errs = append(errs, fmt.Errorf("%w: %w", errNotUnmapped, err))
			}
			continue
		}
		expires := c.held.Expires()
		c.held.Leave()
		a.messagef("%s stays, %s: the gateway does not list its mappings, so it may have existed before. To delete it: goforward unmap %s\n",
			mappingText([]backends.Mapping{c.mapping}), expiryText(expires), a.portArguments([]*portCheck{c}))
	}
	a.close(f)
	return errors.Join(errs...)
}

// measureFunc measures a port.
type measureFunc func(context.Context, *portCheck, ...reach.Prober) (reach.Result, error)

// measurePort measures a mapping of this command, or an entry of the gateway's table.
func measurePort(ctx context.Context, c *portCheck, probers ...reach.Prober) (reach.Result, error) {
	if c.held != nil {
		return c.held.Verify(ctx, probers...)
	}
	return reach.Verify(ctx, c.target, nil, probers...), nil
}

// resultOf returns the result of a measurement. If it failed, nothing is known.
func (a *app) resultOf(ctx context.Context, c *portCheck, v *verifyFlags) reach.Result {
	r, err := a.measure(ctx, c, v.probers...)
	if err != nil {
		return reach.Result{Reason: oneLine(a.errorText(err))}
	}
	return r
}

// verdictError is the exit code of verify and map --verify after the verdicts were printed.
type verdictError int

func (e verdictError) Error() string { return fmt.Sprintf("the verdict has exit code %d", int(e)) }

// verdictOf returns the exit code of the worst verdict as an error, or nil if all ports are
// reachable.
func verdictOf(checks []*portCheck) error {
	worst := exitDone
	for _, c := range checks {
		switch {
		case c.isKnown && c.result.Verdict == reach.Unreachable:
			return verdictError(exitUnreachable)
		case !c.isKnown || c.result.Verdict != reach.Reachable:
			worst = exitNotProven
		}
	}
	if worst == exitDone {
		return nil
	}
	return verdictError(worst)
}

// maxMeasured is the number of ports that are measured at the same time.
const maxMeasured = 8

// measureRounds measures all ports once, or with --every until the interrupt.
func (a *app) measureRounds(ctx context.Context, checks []*portCheck, v *verifyFlags) error {
	v.probers = a.newProbers(v)
	isKnown := false
	for {
		a.measureAll(ctx, checks, v)
		if ctx.Err() == nil {
			isKnown = true
		}
		if v.every == 0 || pause(ctx, v.every, a.stdout.broken) != nil {
			break
		}
	}
	if !isKnown {
		return errInterrupted
	}
	return verdictOf(checks)
}

// pause waits. It returns an error if ctx ends first, or if the output cannot be written.
func pause(ctx context.Context, d time.Duration, broken <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-broken:
		return errInterrupted
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// measureAll measures all ports, and prints the results in order. With a phone, it measures one
// port after another: a person opens the URLs.
func (a *app) measureAll(ctx context.Context, checks []*portCheck, v *verifyFlags) {
	limit := maxMeasured
	if v.usesPhone() {
		limit = 1
	}
	results := make([]chan reach.Result, len(checks))
	next := make(chan int, len(checks))
	for i, c := range checks {
		c.refresh(a)
		results[i] = make(chan reach.Result, 1)
		next <- i
	}
	close(next)
	var work sync.WaitGroup
	defer work.Wait()
	for range min(limit, len(checks)) {
		work.Go(func() {
			for i := range next {
				results[i] <- a.resultOf(ctx, checks[i], v)
			}
		})
	}
	for i, c := range checks { // each result arrives, also after an interrupt
		r := <-results[i]
		if ctx.Err() != nil && r.Verdict != reach.Reachable { // the measurement was not completed
			continue
		}
		a.record(ctx, c, v, r)
	}
}

// record records and prints a result. If a port that was reachable is not reachable any more,
// it maps the port again once.
func (a *app) record(ctx context.Context, c *portCheck, v *verifyFlags, r reach.Result) {
	changed := !c.isKnown || r.Verdict != c.result.Verdict
	c.result, c.isKnown = r, true
	if changed || a.settings.json {
		a.printVerified(c, v, changed)
	}
	switch {
	case r.Verdict == reach.Reachable:
		c.wasProven, c.repaired = true, false
		return
	case r.Verdict != reach.Unreachable, !c.wasProven, c.repaired, v.noRepair, v.every == 0, failsHere(r):
		return
	}
	a.messagef("%s was reachable before: deleting the mapping, and mapping it again.\n", c.name())
	if err := a.repair(ctx, c); err != nil {
		a.failuref("%s is not mapped again: %s\n", c.name(), oneLine(a.errorText(err)))
		c.repaired = errors.Is(err, backends.ErrUnsupported) || errors.Is(err, backends.ErrConflict) // else the next round tries it again
		return
	}
	c.repaired = true
	c.refresh(a)
	if r = a.resultOf(ctx, c, v); ctx.Err() == nil {
		c.wasProven = c.wasProven && r.Verdict != reach.Reachable
		c.isKnown = false // print the result, also if it is the same
		a.record(ctx, c, v, r)
	}
}

// failsHere reports whether a port is not reachable because of this host: no program listens, or
// the firewall drops the router's connections. Another mapping does not change that.
func failsHere(r reach.Result) bool {
	return slices.ContainsFunc(r.Evidence, func(e reach.Evidence) bool {
		return e.Verdict == reach.Unreachable && e.Level <= reach.LevelLAN && !e.Inferred
	})
}

// hasNoProgram reports whether no program of this host receives the connections to a port.
func hasNoProgram(r reach.Result) bool {
	return slices.ContainsFunc(r.Evidence, func(e reach.Evidence) bool {
		return e.Method == reach.MethodListening && e.Verdict == reach.Unreachable
	})
}

// repair deletes a mapping and maps it again, with the same ports.
func (a *app) repair(ctx context.Context, c *portCheck) error {
	if a.repairMapping != nil {
		return a.repairMapping(ctx, c)
	}
	if c.held == nil {
		return a.repairEntry(ctx, c)
	}
	if err := c.held.Shutdown(ctx); err != nil {
		return err
	}
	m, err := c.enable(ctx)
	if err != nil {
		return err
	}
	c.held = m
	return nil
}

// repairEntry deletes an entry of the gateway's table and adds it again. A permanent entry stays
// permanent. If another program of this user keeps the entry alive, repairEntry changes nothing.
func (a *app) repairEntry(ctx context.Context, c *portCheck) error {
	return a.withBackends(ctx, query{
		timeout: listTimeout, sufficient: isLister,
		do: func(ctx context.Context, result *probeResult) error {
			end, err := beginUnmap(result.gateway, c.mapping.Protocol, c.mapping.Internal, false)
			if err != nil {
				return err
			}
			defer end()
			for _, b := range result.available {
				if l, ok := b.Backend.(backends.Lister); ok {
					return a.replaceEntry(ctx, c, b, l)
				}
			}
			return fmt.Errorf("%w: the gateway does not list its mappings any more", backends.ErrUnsupported)
		},
	})
}

func (a *app) replaceEntry(ctx context.Context, c *portCheck, b availableBackend, l backends.Lister) error {
	if c.mapping.Lifetime == backends.Forever && !grantsPermanent(ctx, b) {
		return fmt.Errorf("%w: the entry stays: it is permanent, and the gateway would add it only for a limited time", backends.ErrUnsupported)
	}
	for e, err := range l.List(ctx) {
		if err != nil {
			return err
		}
		m := e.Mapping
		if m.Protocol != c.mapping.Protocol || m.External.Port() != c.mapping.External.Port() || m.Remote != c.mapping.Remote {
			continue
		}
		if m.Internal != c.mapping.Internal {
			return fmt.Errorf("%w: %s has the port now", backends.ErrConflict, endpointText(m.Internal))
		}
		if err := b.Unmap(ctx, m); err != nil {
			return err
		}
		break
	}
	again, err := b.Map(ctx, backends.Request{
		Protocol: c.mapping.Protocol, Internal: c.mapping.Internal, Remote: c.mapping.Remote, Exact: true,
		External: netip.AddrPortFrom(netip.Addr{}, c.mapping.External.Port()),
		Lifetime: c.mapping.Lifetime, Description: c.mapping.Description,
	})
	if err != nil {
		return err
	}
	if c.mapping.Lifetime == backends.Forever && again.Lifetime != backends.Forever {
		a.failuref("%s was permanent, and is now mapped only %s\n", c.name(), expiryText(again.Expires()))
	}
	return nil
}

// grantsPermanent reports whether a device can grant permanent mappings. In version 2 of the
// service, the longest lease is a week (WANIPConnection:2, section 2.3.16).
func grantsPermanent(ctx context.Context, b availableBackend) bool {
	device, is := b.Backend.(*upnp.Backend)
	if !is {
		return true
	}
	all, _ := device.Gateways(ctx) // after an error, the device is not among them
	for _, g := range all {
		if g.Device.URL == device.DeviceURL() {
			return strings.HasSuffix(g.Service.Type, ":1")
		}
	}
	return false
}
