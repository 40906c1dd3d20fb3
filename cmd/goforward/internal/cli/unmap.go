package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func (a *app) unmapCommand() *cobra.Command {
	var u unmapRequest
	cmd := &cobra.Command{
		Use:               "unmap [EXTERNAL:]INTERNAL[/PROTOCOL] | PUBLIC PRIVATE",
		Short:             "Take a mapping away that map made, or another",
		Long:              unmapHelp,
		Example:           unmapExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := u.complete(args); err != nil {
				return err
			}
			if err := a.setFamily(&u.spec); err != nil {
				return err
			}
			q := query{options: u.gatewayOptions(), timeout: forward.DefaultRequestTimeout}
			q.key, u.keyErr = a.unmapKey()
			q.do = func(ctx context.Context, s *probeResult) error { return a.unmap(ctx, &u, s) }
			return a.withBackends(cmd.Context(), q)
		},
	}
	u.register(cmd)
	cmd.Flags().BoolVar(&u.foreign, "foreign", false,
		"also what leads to another host: the one that --to names, or else any that has the external port")
	// They do not tell which mapping is meant, but what follows map may follow unmap.
	for _, name := range []string{"lifetime", "exact", "same-port", "description"} {
		_ = cmd.Flags().MarkHidden(name)
	}
	return cmd
}

// unmapping is what is to be taken away.
type unmapRequest struct {
	spec
	foreign bool   // also of other hosts
	keyErr   error  // why the user's secret is not to be had
	remark  string // what somebody should know who relies on its end
}

// anyHost reports whether it does not matter which host a mapping leads to.
func (u *unmapRequest) anyHost() bool { return u.foreign && !u.to.IsValid() }

// complete is that of the wish, with what deletes by mistake left out.
func (u *unmapRequest) complete(args []string) error {
	if err := u.spec.parseArgs(args); err != nil {
		return err
	}
	switch {
	case u.internal == 0:
		return usagef("which one? name the port as map had it")
	case u.anyHost() && u.external == 0:
		return usagef("--foreign takes a host with --to, or an external port, as in 80:8080")
	}
	return nil
}

// unmapKey is the user's secret or, with the reason, one that nobody has: enough
// to learn from the gateway whether there is a mapping that needs the user's.
func (a *app) unmapKey() (key []byte, noKey error) {
	if !a.needsKey() {
		return nil, nil
	}
	key, err := loadKey(a.keyFile)
	if err != nil {
		return randomKey(), err
	}
	return key, nil
}

// unmap takes all that is named from the gateway, by every backend: nobody
// remembers which one made it.
func (a *app) unmap(ctx context.Context, u *unmapRequest, s *probeResult) error {
	var failures []error
	for _, p := range u.protocols {
		failures = append(failures, a.unmapProtocol(ctx, u, u.request(p), s)...)
	}
	return errors.Join(failures...)
}

// unmapProtocol takes away what is named of one protocol, and tells so where
// nothing is left of it. A backend that cannot have made it counts only where
// none can.
func (a *app) unmapProtocol(ctx context.Context, u *unmapRequest, r backends.Request, s *probeResult) (failures []error) {
	all := withListersLast(s.available)
	u.remark = ""
	errs := make([]error, len(all))
	var gone []backends.Mapping
	for i, b := range all {
		var some []backends.Mapping
		some, errs[i] = u.unmapFrom(ctx, b, r)
		gone = append(gone, some...)
	}
	var by []string
	var unsupported []error
	for i, b := range all {
		if errors.Is(errs[i], backends.ErrNotAuthorized) && slices.Contains(errs[i+1:], nil) {
			_, errs[i] = u.unmapFrom(ctx, b, r) // it refused what another protocol had made, which is gone now
		}
		switch err := errs[i]; {
		case err == nil:
			by = append(by, b.name)
		case errors.Is(err, backends.ErrUnsupported):
			unsupported = append(unsupported, err)
		case b.usesKey && errors.Is(err, backends.ErrNotAuthorized):
			failures = append(failures, a.explainRefusal(err, u.keyErr))
		default:
			failures = append(failures, err)
		}
	}
	switch {
	case len(failures) > 0:
		return failures
	case len(by) == 0:
		return unsupported
	}
	a.printUnmapped(u, r, gone, by, s)
	return nil
}

// listersLast leaves to those that see the whole table what the others did not
// take away: they may be refused what has an owner by a secret.
func withListersLast(all []availableBackend) []availableBackend {
	var lists, others []availableBackend
	for _, b := range all {
		if isLister(b.Backend) {
			lists = append(lists, b)
		} else {
			others = append(others, b)
		}
	}
	return append(others, lists...)
}

// unmapped tells what is gone: where any host was meant, what was found.
func (a *app) printUnmapped(u *unmapRequest, r backends.Request, gone []backends.Mapping, by []string, s *probeResult) {
	at := fmt.Sprintf("by %s at %s", joinNames(by), endpointText(s.gateway))
	host := "this host"
	if r.Internal.Addr().IsValid() {
		host = r.Internal.Addr().String()
	}
	switch {
	case !u.anyHost():
		gone = nil // nobody but the lister would be told
		a.messagef("%v port %d of %s: not forwarded any more, %s\n", r.Protocol, r.Internal.Port(), host, at)
	case len(gone) == 0:
		a.messagef("%v port %d: not forwarded to port %d of any host, %s\n", r.Protocol, r.External.Port(), r.Internal.Port(), at)
	}
	a.messagef("%s", u.remark)
	for _, m := range gone {
		a.messagef("%s: not forwarded any more, %s\n", mappingText([]backends.Mapping{m}), at)
	}
	if !a.settings.json {
		return
	}
	if len(gone) == 0 {
		gone = []backends.Mapping{mappingFor(s.available[0], r)}
	}
	for _, m := range gone {
		m.Backend, m.Gateway, m.Lifetime = strings.Join(by, ","), s.gateway, backends.Forever // it has none any more
		a.printJSON(mappingRecord{}.forMapping("unmapped", m))
	}
}

// enumerate is a list for people.
func joinNames(names []string) string {
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// notOurs explains why a gateway refuses to take a mapping away.
func (a *app) explainRefusal(err, noKey error) error {
	if noKey != nil {
		return fmt.Errorf("%w\n  → a mapping by PCP is taken away with the key that made it, and there is none: %w", err, noKey)
	}
	path, _ := a.keyFile()
	return fmt.Errorf("%w\n  → only who made a mapping by PCP can take it away, with the key in %s; it ends with its lifetime", err, path)
}

// request is what map would have asked for.
func (w *spec) request(p backends.Protocol) backends.Request {
	return backends.Request{
		Protocol: p,
		Internal: netip.AddrPortFrom(w.to, w.internal),
		External: netip.AddrPortFrom(netip.Addr{}, w.external),
		Remote:   w.from,
	}
}

// mappingOf is what is known of a mapping that another process made. However
// this host was named, it is this host.
func mappingFor(b availableBackend, r backends.Request) backends.Mapping {
	internal := r.Internal
	if internal.Addr() == b.localAddr {
		internal = netip.AddrPortFrom(netip.Addr{}, internal.Port())
	}
	return backends.Mapping{
		Backend: b.name, Gateway: b.gateway,
		Protocol: r.Protocol, Internal: internal, Remote: r.Remote, Lifetime: backends.Forever,
	}
}
