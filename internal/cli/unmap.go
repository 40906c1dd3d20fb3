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
)

func (a *app) unmapCommand() *cobra.Command {
	var w wish
	cmd := &cobra.Command{
		Use:               "unmap [EXTERNAL:]INTERNAL[/PROTOCOL] | PUBLIC PRIVATE",
		Short:             "Take a mapping away that map made",
		Long:              unmapHelp,
		Example:           unmapExamples,
		Args:              portArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.complete(args); err != nil {
				return err
			}
			if w.internal == 0 {
				return usagef("which one? name the port as map had it")
			}
			if err := a.fits(&w); err != nil {
				return err
			}
			key, noKey := a.unmapKey()
			return a.withBackends(cmd.Context(), w.way(), key, func(ctx context.Context, all []found) error {
				return a.unmap(ctx, &w, all, noKey)
			})
		},
	}
	w.register(cmd)
	// They do not tell which mapping is meant, but what follows map may follow unmap.
	for _, name := range []string{"lifetime", "exact", "same-port", "description"} {
		_ = cmd.Flags().MarkHidden(name)
	}
	return cmd
}

// unmapKey is the user's secret or, with the reason, one that nobody has: enough
// to learn from the gateway whether there is a mapping that needs the user's.
func (a *app) unmapKey() (key []byte, noKey error) {
	if !a.keyed() {
		return nil, nil
	}
	key, err := loadKey(a.keyFile)
	if err != nil {
		return someKey(), err
	}
	return key, nil
}

// unmap takes all that the wish names from the gateway, by every backend:
// nobody remembers which one made it.
func (a *app) unmap(ctx context.Context, w *wish, all []found, noKey error) error {
	var failures []error
	for _, p := range w.protocols {
		failures = append(failures, a.unmapProtocol(ctx, w.request(p), all, noKey)...)
	}
	return errors.Join(failures...)
}

// unmapProtocol takes one mapping away, and tells so where nothing is left of
// it. A backend that cannot have made it counts only where none can.
func (a *app) unmapProtocol(ctx context.Context, r backends.Request, all []found, noKey error) (failures []error) {
	errs := make([]error, len(all))
	for i, b := range all {
		errs[i] = unmapOne(ctx, b, r)
	}
	var by []string
	var unsupported []error
	for i, b := range all {
		if errors.Is(errs[i], backends.ErrNotAuthorized) && slices.Contains(errs[i+1:], nil) {
			errs[i] = unmapOne(ctx, b, r) // it refused what another protocol had made, which is gone now
		}
		switch err := errs[i]; {
		case err == nil:
			by = append(by, b.name)
		case errors.Is(err, backends.ErrUnsupported):
			unsupported = append(unsupported, err)
		case b.keyed && errors.Is(err, backends.ErrNotAuthorized):
			failures = append(failures, a.notOurs(err, noKey))
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
	host := "this host"
	if r.Internal.Addr().IsValid() {
		host = r.Internal.Addr().String()
	}
	a.sayf("%v port %d of %s: not forwarded any more, by %s at %s\n",
		r.Protocol, r.Internal.Port(), host, strings.Join(by, " and "), endpointText(all[0].gateway))
	if a.settings.json {
		m := mappingOf(all[0], r)
		m.Backend = strings.Join(by, ",")
		a.records("unmapped", []backends.Mapping{m}, record{})
	}
	return nil
}

// notOurs explains why a gateway refuses to take a mapping away.
func (a *app) notOurs(err, noKey error) error {
	if noKey != nil {
		return fmt.Errorf("%w\n  → a mapping by PCP is taken away with the key that made it, and there is none: %w", err, noKey)
	}
	path, _ := a.keyFile()
	return fmt.Errorf("%w\n  → only who made a mapping by PCP can take it away, with the key in %s; it ends with its lifetime", err, path)
}

// request is what map would have asked for.
func (w *wish) request(p backends.Protocol) backends.Request {
	return backends.Request{
		Protocol: p,
		Internal: netip.AddrPortFrom(w.to, w.internal),
		External: netip.AddrPortFrom(netip.Addr{}, w.external),
		Remote:   w.from,
	}
}

// unmapOne takes a mapping away that another process made. It knows of it what
// the request says: the internal port, and the key.
func unmapOne(ctx context.Context, b found, r backends.Request) error {
	if err := b.Supports(r); err != nil {
		return err
	}
	return b.Unmap(ctx, mappingOf(b, r))
}

// mappingOf is what is known of a mapping that another process made. However
// this host was named, it is this host.
func mappingOf(b found, r backends.Request) backends.Mapping {
	internal := r.Internal
	if internal.Addr() == b.local {
		internal = netip.AddrPortFrom(netip.Addr{}, internal.Port())
	}
	return backends.Mapping{
		Backend: b.name, Gateway: b.gateway,
		Protocol: r.Protocol, Internal: internal, Remote: r.Remote, Lifetime: backends.Forever,
	}
}
