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
		Use:               "unmap [EXTERNAL:]INTERNAL[/PROTOCOL] | EXTERNAL INTERNAL",
		Short:             "Delete a mapping",
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
			q.do = func(ctx context.Context, result *probeResult) error { return a.unmap(ctx, &u, result) }
			return a.withBackends(cmd.Context(), q)
		},
	}
	u.register(cmd)
	for name, usage := range map[string]string{
		"ipv6": "delete the pinhole for this port in the gateway's IPv6 firewall",
		"to":   "delete the mapping to this host",
		"from": "delete the mapping for this peer",
	} {
		cmd.Flags().Lookup(name).Usage = usage
	}
	cmd.Flags().BoolVar(&u.foreign, "foreign", false,
		"also delete mappings to other hosts: to the host of --to, or else to any host with this external port")
	cmd.Flags().BoolVar(&u.force, "force", false, "also delete a mapping that another running program of this user keeps alive")
	// These flags do not select a mapping, but unmap accepts the flags of map.
	for _, name := range []string{"lifetime", "exact", "same-port", "description"} {
		_ = cmd.Flags().MarkHidden(name)
	}
	return cmd
}

// unmapRequest selects the mappings to delete.
type unmapRequest struct {
	spec
	foreign bool   // also delete mappings to other hosts
	force   bool   // also delete mappings that another program holds
	keyErr  error  // why the user's key is not available
	remark  string // a message to print after the result; empty: none
}

// anyHost reports whether mappings to any host match.
func (u *unmapRequest) anyHost() bool { return u.foreign && !u.to.IsValid() }

// complete parses the arguments, and rejects requests that might delete a mapping by mistake.
func (u *unmapRequest) complete(args []string) error {
	specs, err := u.parseArgs(args)
	if err != nil {
		return err
	}
	if len(specs) > 1 {
		return usagef("%d ports: name one mapping at a time", len(specs))
	}
	u.spec = *specs[0]
	switch {
	case u.internal == 0:
		return usagef("no port is named: name the internal port of the mapping, as in goforward unmap 8080")
	case u.anyHost() && u.external == 0:
		return usagef("--foreign needs an external port, as in 80:8080, or a host, as in --to 192.168.1.9")
	}
	return nil
}

// unmapKey returns the user's key. If there is none, it returns a random key and the reason. A
// random key is enough to learn from the gateway whether a mapping needs the user's key.
func (a *app) unmapKey() (key []byte, keyErr error) {
	if !a.needsKey() {
		return nil, nil
	}
	key, err := loadKey(a.keyFile)
	if err != nil {
		return randomKey(), err
	}
	return key, nil
}

// unmap deletes all matching mappings of the gateway with each backend, because it does not know
// which protocol created them.
func (a *app) unmap(ctx context.Context, u *unmapRequest, result *probeResult) error {
	var failures []error
	for _, p := range u.protocols {
		host := u.to
		if !host.IsValid() {
			host = result.localAddr()
		}
		end, err := beginUnmap(result.gateway, p, netip.AddrPortFrom(host, u.internal), u.force)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		failures = append(failures, a.unmapProtocol(ctx, u, u.request(p), result)...)
		end()
	}
	for _, b := range result.unavailable {
		if isLister(b.Backend) && errors.Is(b.err, backends.ErrMalformed) { // a device exists, and may have the mapping
			a.failuref("%s was not used: %s\n", b.title, oneLine(strings.TrimPrefix(errorText(b.err), b.name+": ")))
		}
	}
	return errors.Join(failures...)
}

// unmapProtocol deletes the matching mappings of one transport protocol, and prints a line if
// none remains. The error of a backend that cannot have created the mapping is returned only if
// no other backend deleted the mapping or failed.
func (a *app) unmapProtocol(ctx context.Context, u *unmapRequest, r backends.Request, result *probeResult) (failures []error) {
	all := withListersLast(result.available)
	u.remark = ""
	errs := make([]error, len(all))
	var deleted []backends.Mapping
	for i, b := range all {
		var entries []backends.Mapping
		entries, errs[i] = u.unmapFrom(ctx, b, r)
		deleted = append(deleted, entries...)
	}
	var by []string
	var unsupported []error
	for i, b := range all {
		if errors.Is(errs[i], backends.ErrNotAuthorized) && slices.Contains(errs[i+1:], nil) {
			// It refused because of a mapping of another protocol, which is deleted now.
			_, errs[i] = u.unmapFrom(ctx, b, r)
		}
		switch err := errs[i]; {
		case err == nil:
			by = append(by, b.name)
		case errors.As(err, &inapplicableError{}):
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
	a.printUnmapped(u, r, deleted, by, result)
	if len(deleted) > 0 {
		a.printOtherDevice(deleted[0])
	}
	return nil
}

// withListersLast moves the backends that can list the whole table to the end. A
// gateway may refuse to let a lister delete mappings that a secret protects, so the others
// delete first.
func withListersLast(all []availableBackend) []availableBackend {
	var listers, others []availableBackend
	for _, b := range all {
		if isLister(b.Backend) {
			listers = append(listers, b)
		} else {
			others = append(others, b)
		}
	}
	return append(others, listers...)
}

// printUnmapped prints the result. For a mapping to any host, it prints the deleted entries.
func (a *app) printUnmapped(u *unmapRequest, r backends.Request, deleted []backends.Mapping, by []string, result *probeResult) {
	at := fmt.Sprintf("by %s at %s", joinNames(by), endpointText(result.gateway))
	host := "this host"
	if r.Internal.Addr().IsValid() {
		host = r.Internal.Addr().String()
	}
	switch {
	case !u.anyHost():
		deleted = nil // only a lister returns deleted entries
		a.messagef("%v port %d of %s: not forwarded any more, %s\n", r.Protocol, r.Internal.Port(), host, at)
	case len(deleted) == 0:
		a.messagef("%v port %d: not forwarded to port %d of any host, %s\n", r.Protocol, r.External.Port(), r.Internal.Port(), at)
	}
	a.messagef("%s", u.remark)
	for _, m := range deleted {
		a.messagef("%s: not forwarded any more, %s\n", mappingText([]backends.Mapping{m}), at)
	}
	if !a.settings.json {
		return
	}
	if len(deleted) == 0 {
		deleted = []backends.Mapping{mappingFor(result.available[0], r)}
	}
	for _, m := range deleted {
		m.Backend, m.Gateway, m.Lifetime = strings.Join(by, ","), result.gateway, backends.Forever // the mapping has no lifetime any more
		a.printJSON(mappingRecord{}.forMapping("unmapped", m))
	}
}

// explainRefusal explains why a gateway refuses to delete a mapping.
func (a *app) explainRefusal(err, keyErr error) error {
	if keyErr != nil {
		return fmt.Errorf("%w\n  → to delete a PCP mapping, unmap needs the key that created it, and there is no key: %w", err, keyErr)
	}
	path, _ := a.keyFile()
	return fmt.Errorf("%w\n  → only the user who created a PCP mapping can delete it, with the key in %s; else it ends with its lifetime", err, path)
}
