package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func (a *app) mapCommand() *cobra.Command {
	var (
		s      spec
		hf     holdFlags
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:               "map [[EXTERNAL:]INTERNAL[/PROTOCOL]... | EXTERNAL INTERNAL]",
		Short:             "Forward ports of the gateway to this host",
		Long:              mapHelp,
		Example:           mapExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.setFamily(&s); err != nil {
				return err
			}
			specs, err := s.parseArgs(args)
			if err != nil {
				return err
			}
			a.spec = specs[0]
			if err := hf.check(cmd, specs); err != nil {
				return err
			}
			if err := a.checkVia(hf.verify.via); err != nil {
				return err
			}
			if err := a.settings.checkSource(); err != nil && !hf.wait { // with --wait, the host may get the address later
				return err
			}
			switch {
			case dryRun:
				return a.mapDryRun(cmd.Context(), specs)
			case hf.hold:
				a.printShellWarning(cmd)
				return a.hold(cmd.Context(), specs, &hf, untilInterrupt)
			}
			return a.mapOnce(cmd.Context(), specs, &hf)
		},
	}
	s.register(cmd)
	hf.register(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "find the gateway, print the request and the protocol, and map nothing")
	return cmd
}

// checkPortArgs checks the arguments of map and unmap before anything else happens.
func checkPortArgs(_ *cobra.Command, args []string) error {
	_, _, err := parsePorts(args)
	return err
}

// attempt is a call of Enable for one of several mappings.
type attempt struct {
	spec    *spec
	mapping *forward.Mapping
	err     error
	done    chan struct{} // closed when mapping and err are valid
}

// enableAll enables all mappings at the same time. It does not wait for them. With --exact, it
// enables one after another: a gateway may grant a port that is not exact, before the request
// fails, and that port can be the one of the next mapping.
func enableAll(ctx context.Context, f *forward.Forwarder, specs []*spec, options func(i int) []forward.Option) []*attempt {
	var all []*attempt
	for i, s := range specs {
		one := &attempt{spec: s, done: make(chan struct{})}
		var previous *attempt
		if s.exact && i > 0 {
			previous = all[i-1]
		}
		all = append(all, one)
		go func() {
			defer close(one.done)
			if previous != nil {
				<-previous.done
				if errors.Is(previous.err, backends.ErrNoReply) { // the gateway would not reply to this request either
					one.err = previous.err
					return
				}
			}
			one.mapping, one.err = f.Enable(ctx, options(i)...)
		}()
	}
	return all
}

// grantedMapping is a requested mapping and what the gateway granted.
type grantedMapping struct {
	spec    *spec
	granted []backends.Mapping
}

// mapOnce creates mappings that stay for their lifetime. It prints the results in the order of
// the arguments.
func (a *app) mapOnce(ctx context.Context, specs []*spec, hf *holdFlags) error {
	config := a.config()
	config.NonceKey = a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	defer a.close(f)
	var all []grantedMapping
	var checks []*portCheck
	var failures mapErrors
	attempts := enableAll(ctx, f, specs, func(i int) []forward.Option { return specs[i].options() })
	defer leaveAll(attempts)
	for _, one := range attempts {
		<-one.done
		granted, expires, err := leave(one, hf.verify.ofMap)
		if err != nil {
			failures = append(failures, mapError{one.spec, err})
			continue
		}
		all = append(all, grantedMapping{one.spec, granted})
		if hf.verify.ofMap {
			checks = append(checks, a.checksOf(one, granted)...)
		}
		a.printMapped(granted)
		a.messagef("%s, by %s, %s\n", mappingText(granted), backendText(granted[0]), expiryText(expires))
	}
	if ctx.Err() != nil && len(failures) > 0 {
		leaveAll(attempts)
		a.printInterrupted()
		return interruptedError(f.Close())
	}
	a.printRemarks(all, remarkOptions{running: true, verified: hf.verify.ofMap})
	if err := a.writePortFile(ctx, hf, all); err != nil {
		return err
	}
	var verdict error
	if len(checks) > 0 {
		verdict = a.measureRounds(ctx, checks, &hf.verify)
	}
	return cmp.Or(a.mapFailure(specs, failures), verdict)
}

// checksOf returns a check for each port of a mapping.
func (a *app) checksOf(one *attempt, granted []backends.Mapping) (checks []*portCheck) {
	for _, m := range granted {
		c := &portCheck{spec: one.spec, mapping: m, target: a.reachTarget(m)}
		if len(granted) == 1 {
			c.held = one.mapping
		}
		checks = append(checks, c)
	}
	return checks
}

// leaveAll makes the mappings of all attempts, which have ended, stay for their lifetime.
func leaveAll(attempts []*attempt) {
	for _, one := range attempts {
		if <-one.done; one.mapping != nil {
			one.mapping.Leave()
		}
	}
}

// interruptedError is the error of an interrupted map. What the gateway had not granted yet is
// deleted, unless remains says otherwise.
func interruptedError(remains error) error {
	if remains == nil {
		return errInterrupted
	}
	return fmt.Errorf("%w: %w\n  → goforward unmap deletes it", errInterrupted, remains)
}

// leave returns what an attempt was granted. The mapping stays for its lifetime. If keep is true,
// it is renewed until leaveAll is called.
func leave(one *attempt, keep bool) ([]backends.Mapping, time.Time, error) {
	if one.err != nil {
		return nil, time.Time{}, one.err
	}
	status := one.mapping.Status()
	if !keep {
		one.mapping.Leave()
	}
	if len(status.Grants) == 0 {
		return nil, time.Time{}, fmt.Errorf("%w: the gateway granted the mapping and lost it at once; run map again", backends.ErrNoReply)
	}
	return status.Grants, status.Expires, nil
}

// writePortFile writes the external port of the only mapping to the file of --port-file.
func (a *app) writePortFile(ctx context.Context, hf *holdFlags, all []grantedMapping) error {
	file := a.newPortFile(hf.portFile)
	if file == nil || len(all) == 0 {
		return nil
	}
	err := file.write(ctx, all[0].granted[0].External.Port())
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%w: the mapping stays for its lifetime, and its port is not written to %s\n  → goforward unmap deletes it", errInterrupted, hf.portFile)
	case err != nil:
		return fmt.Errorf("the mapping stays for its lifetime, but its port is not written: %w", err)
	}
	return nil
}

// mapErrors are the errors of the mappings that failed, if there are several mappings.
type mapErrors []mapError

// mapError is the error of one mapping.
type mapError struct {
	spec *spec
	err  error
}

// Error returns the text of each error once, after the mappings that failed with it.
func (e mapErrors) Error() string {
	var parts []string
	for _, group := range e.groups() {
		parts = append(parts, group.Error())
	}
	return strings.Join(parts, "\n")
}

func (e mapErrors) Unwrap() []error {
	var errs []error
	for _, one := range e {
		errs = append(errs, one.err)
	}
	return errs
}

// mapErrorGroup are the mappings that failed with the same text.
type mapErrorGroup struct {
	specs []*spec
	err   error // the first of their errors
}

func (g *mapErrorGroup) Error() string {
	var names []string
	for _, s := range g.specs {
		names = append(names, s.name())
	}
	return joinSome(names) + ": " + errorText(g.err)
}

func (g *mapErrorGroup) Unwrap() error { return g.err }

// groups returns the errors in order, with equal texts together.
func (e mapErrors) groups() (out []*mapErrorGroup) {
	for _, one := range e {
		i := slices.IndexFunc(out, func(g *mapErrorGroup) bool { return g.err.Error() == one.err.Error() })
		if i < 0 {
			i, out = len(out), append(out, &mapErrorGroup{err: one.err})
		}
		out[i].specs = append(out[i].specs, one.spec)
	}
	return out
}

// mapFailure returns the error of map for the mappings that failed, or nil. If there are
// several mappings, it prints an object for each failure with --json.
func (a *app) mapFailure(specs []*spec, failures mapErrors) error {
	switch {
	case len(failures) == 0:
		return nil
	case len(specs) == 1:
		return failures[0].err
	}
	a.printFailures(failures)
	return failures
}

// printFailures prints an object for each of several mappings that failed, with --json.
func (a *app) printFailures(failures mapErrors) {
	if !a.settings.json {
		return
	}
	for _, one := range failures {
		a.printRecords("error", one.spec.requested(), mappingRecord{Reason: errorText(one.err), Kind: classify(one.err).name})
	}
}

// mapDryRun prints the requests that map would send, and the protocol of each. It requests no
// mapping.
func (a *app) mapDryRun(ctx context.Context, specs []*spec) error {
	return a.withBackends(ctx, query{
		options: specs[0].gatewayOptions(), timeout: forward.DefaultRequestTimeout,
		do: func(_ context.Context, result *probeResult) error {
			var failures []error
			for _, s := range specs {
				failures = append(failures, a.printDryRun(s, result))
			}
			return errors.Join(failures...)
		},
	})
}

// printDryRun prints the request for one mapping. It fails if no available protocol supports
// the request.
func (a *app) printDryRun(s *spec, result *probeResult) error {
	var reasons []error
	for _, b := range result.available {
		if err := s.supportedBy(b); err != nil {
			reasons = append(reasons, err)
			continue
		}
		ms := s.requested()
		for i := range ms {
			ms[i].Backend, ms[i].Gateway = b.name, b.gateway
			if !ms[i].Internal.Addr().IsValid() {
				ms[i].Internal = netip.AddrPortFrom(b.localAddr, ms[i].Internal.Port())
			}
		}
		if a.settings.json {
			for i, m := range ms {
				r := mappingRecord{}.forMapping("dry_run", m)
				if s.external != 0 {
					r.External.Port = s.external + uint16(i/len(s.protocols))
				}
				a.printJSON(r)
			}
			return nil
		}
		external, internal := "any free port", "a free port of this host"
		if port := cmp.Or(s.external, s.internal); port != 0 {
			external = "port " + rangeText(port, s.count)
			if !s.exact {
				external += " or another one"
			}
		}
		if s.internal != 0 {
			internal = rangeEndText(ms[0].Internal, s.count)
		}
		a.resultf("%s: %s → %s, by %s\n", protocolsText(ms), external, internal, backendText(ms[0]))
		return nil
	}
	return fmt.Errorf("%s: %w", s.name(), errors.Join(reasons...))
}

// supportedBy returns an error if a backend does not support the requests for the mapping.
func (s *spec) supportedBy(b availableBackend) error {
	for _, p := range s.protocols {
		r := s.request(p)
		r.Internal = netip.AddrPortFrom(r.Internal.Addr(), cmp.Or(s.internal, 1)) // without a port, map uses a free one
		if err := b.Supports(r); err != nil {
			return err
		}
	}
	return nil
}

// printMapped prints the result of map.
func (a *app) printMapped(granted []backends.Mapping) {
	if a.settings.json {
		a.printRecords("mapped", granted, mappingRecord{})
		return
	}
	a.resultf("%s\n", externalText(granted))
}
