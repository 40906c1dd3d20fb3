package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
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
			if v.every != 0 && v.uses(viaPhone) {
				return usagef("--every and --via phone exclude each other: a person opens the URL only once")
			}
			if v.isTooOften() {
				return errTooOften
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
	if v.uses(viaPhone) {
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
	case r.Verdict != reach.Unreachable, !c.wasProven, c.repaired, v.noRepair, v.every == 0, r.FailsHere():
		return
	}
	if err := a.repair(ctx, c); err != nil {
		a.failuref("%s was reachable before, but is not mapped again: %s\n", c.name(), oneLine(a.errorText(err)))
		c.repaired = errors.Is(err, backends.ErrUnsupported) || errors.Is(err, backends.ErrConflict) // else the next round tries it again
		return
	}
	a.messagef("%s was reachable before: the mapping was deleted and requested again.\n", c.name())
	c.repaired = true
	c.refresh(a)
	if r = a.resultOf(ctx, c, v); ctx.Err() == nil {
		c.wasProven = c.wasProven && r.Verdict != reach.Reachable
		c.isKnown = false // print the result, also if it is the same
		a.record(ctx, c, v, r)
	}
}

// hasNoProgram reports whether no program of this host receives the connections to a port.
func hasNoProgram(r reach.Result) bool {
	return slices.ContainsFunc(r.Evidence, func(e reach.Evidence) bool {
		return e.Method == reach.MethodListening && e.Verdict == reach.Unreachable
	})
}
