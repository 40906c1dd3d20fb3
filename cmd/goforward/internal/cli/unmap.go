package cli

import (
	"cmp"
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
		Use:               "unmap [EXTERNAL:]INTERNAL[/PROTOCOL]... | EXTERNAL INTERNAL | --all",
		Short:             "Delete mappings",
		Long:              unmapHelp,
		Example:           unmapExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.setFamily(&u.spec); err != nil {
				return err
			}
			requests, err := u.requests(args)
			if err != nil {
				return err
			}
			return a.unmapCommandLine(cmd.Context(), &u, requests)
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
	cmd.Flags().BoolVar(&u.all, "all", false, "delete all mappings to this host")
	cmd.Flags().BoolVar(&u.force, "force", false, "also delete a mapping that another running program of this user keeps alive")
	cmd.Flags().BoolVar(&u.dryRun, "dry-run", false, "only print what would be deleted")
	// These flags do not select a mapping, but unmap accepts the flags of map.
	for _, name := range []string{"lifetime", "exact", "same-port", "as-one", "description"} {
		_ = cmd.Flags().MarkHidden(name)
	}
	return cmd
}

// unmapRequest selects the mappings to delete.
type unmapRequest struct {
	spec
	foreign bool   // also delete mappings to other hosts
	all     bool   // delete all mappings to this host, or all to the internal port
	force   bool   // also delete mappings that another program keeps alive
	dryRun  bool   // only print what would be deleted
	keyErr  error  // why the user's key is not available
	remark  string // a message to print after the result; empty: none
}

// anyHost reports whether mappings to any host match.
func (u *unmapRequest) anyHost() bool { return u.foreign && !u.to.IsValid() }

// requests returns a request for each port of the arguments, or none with --all. It rejects
// requests that might delete a mapping by mistake.
func (u *unmapRequest) requests(args []string) ([]*unmapRequest, error) {
	if u.all {
		return nil, u.checkAll(args)
	}
	u.asOne = false // the ports of a range are deleted one by one
	specs, err := u.parseArgs(args)
	if err != nil {
		return nil, err
	}
	var out []*unmapRequest
	for _, s := range specs {
		one := *u
		one.spec = *s
		switch {
		case one.internal == 0:
			return nil, usagef("no port is named: name the internal port of the mapping, as in goforward unmap 8080")
		case one.anyHost() && one.external == 0:
			return nil, usagef("--foreign needs an external port, as in 80:8080, or a host, as in --to 192.168.1.9")
		}
		out = append(out, &one)
	}
	return out, nil
}

// checkAll returns an error if the arguments or flags do not fit to --all.
func (u *unmapRequest) checkAll(args []string) error {
	switch {
	case len(args) > 0:
		return usagef("--all and ports exclude each other: name the ports, or use --all")
	case u.foreign:
		return usagef("--all and --foreign exclude each other: together they would delete the mappings of all hosts")
	case u.ipv6:
		return usagef("--all needs IPv4: IPv6 firewalls do not list their pinholes")
	case u.to.IsValid(), u.from.IsValid():
		return usagef("--all deletes all mappings to this host: --to and --from need a port")
	}
	one, err := u.withPorts(ports{internal: 1, count: 1}) // merges -p and -u
	if err == nil && (u.protocols != nil || u.udp) {
		u.protocols = one.protocols
	}
	return err
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

// unmapCommandLine executes unmap for the requests of the command line, or for --all.
func (a *app) unmapCommandLine(ctx context.Context, u *unmapRequest, requests []*unmapRequest) error {
	key, keyErr := a.unmapKey()
	q := query{options: u.gatewayOptions(), key: key, timeout: forward.DefaultRequestTimeout}
	if len(requests) != 1 {
		q.timeout = listTimeout
	}
	var failures mapErrors // apart from other errors, because each group has a hint of its own
	q.do = func(ctx context.Context, result *probeResult) (err error) {
		result = withTableReaders(result)
		u.keyErr = keyErr
		for _, one := range requests {
			one.keyErr = keyErr
		}
		if u.all {
			failures, err = a.unmapAll(ctx, u, result)
			return err
		}
		failures = a.unmap(ctx, requests, result)
		return nil
	}
	err := a.withBackends(ctx, q)
	failure := a.unmapFailure(ctx, len(requests) != 1, failures)
	if err == nil || failure == nil {
		return cmp.Or(failure, err)
	}
	return errors.Join(failure, err)
}

// unmapFailure returns the error of unmap for the mappings that failed, or nil. If there are
// several mappings, it prints an object for each failure with --json.
func (a *app) unmapFailure(ctx context.Context, several bool, failures mapErrors) error {
	switch {
	case len(failures) == 0:
		return nil
	case ctx.Err() != nil:
		return errInterrupted
	}
	for i, one := range failures {
		failures[i].err = sentError{one.err}
	}
	if several {
		a.printFailures(failures)
		return failures
	}
	return errors.Join(failures.Unwrap()...)
}

// unmap deletes all matching mappings of the gateway with each backend, because it does not know
// which protocol created them. It returns an error for each port and protocol that failed.
func (a *app) unmap(ctx context.Context, requests []*unmapRequest, result *probeResult) (failures mapErrors) {
	var deleted []backends.Mapping
	for _, u := range requests {
		for _, p := range u.protocols {
			entries, err := a.unmapPort(ctx, u, u.request(p), result)
			deleted = append(deleted, entries...)
			if err != nil {
				one := u.spec
				one.protocols = []backends.Protocol{p}
				failures = append(failures, mapError{&one, err})
			}
		}
	}
	if len(deleted) > 0 {
		a.printOtherDevice(deleted[0])
	}
	for _, b := range result.unavailable {
		if isLister(b.Backend) && errors.Is(b.err, backends.ErrMalformed) { // a device exists, and may have the mapping
			a.failuref("%s was not used: %s\n", b.title, oneLine(strings.TrimPrefix(errorText(b.err), b.name+": ")))
		}
	}
	return failures
}

// unmapPort handles one port and protocol, with --all too. It returns the entries of the table
// that were deleted, or that would be. Nothing has been sent for the port yet.
func (a *app) unmapPort(ctx context.Context, u *unmapRequest, r backends.Request, result *probeResult) ([]backends.Mapping, error) {
	u.remark = ""
	host := u.to
	if !host.IsValid() {
		host = result.localAddr()
	}
	end, err := beginUnmap(result.gateway, r.Protocol, netip.AddrPortFrom(host, r.Internal.Port()), u.force)
	if err != nil {
		return nil, err
	}
	defer end()
	if u.dryRun {
		return a.unmapDryRun(ctx, u, r, result)
	}
	return a.unmapProtocol(ctx, u, r, result)
}

// unmapProtocol deletes the matching mappings of one transport protocol, and prints a line if
// none remains. The error of a backend that cannot have created the mapping is returned only if
// no other backend deleted the mapping or failed.
func (a *app) unmapProtocol(ctx context.Context, u *unmapRequest, r backends.Request, result *probeResult) (deleted []backends.Mapping, err error) {
	all := withListersLast(result.available)
	errs := make([]error, len(all))
	var listers []string // the backends that deleted entries
	for i, b := range all {
		var entries []backends.Mapping
		entries, errs[i] = u.unmapFrom(ctx, b, r)
		if deleted = append(deleted, entries...); len(entries) > 0 {
			listers = append(listers, b.name)
		}
	}
	var by []string
	var unsupported, failures []error
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
		if u.all || u.anyHost() { // each deleted entry is a result of its own
			a.printDeleted(deleted, listers, result)
		}
		return deleted, errors.Join(failures...)
	case len(by) == 0:
		return deleted, errors.Join(unsupported...)
	}
	a.printUnmapped(u, r, deleted, by, result)
	return deleted, nil
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

// printUnmapped prints the result. For a mapping to any host and for --all, it prints the
// deleted entries.
func (a *app) printUnmapped(u *unmapRequest, r backends.Request, deleted []backends.Mapping, by []string, result *probeResult) {
	if len(deleted) > 0 && (u.all || u.anyHost()) {
		a.messagef("%s", u.remark)
		a.printDeleted(deleted, by, result)
		return
	}
	at := byAtText(by, result)
	if u.anyHost() {
		a.messagef("%v port %d: not forwarded to port %d of any host, %s\n", r.Protocol, r.External.Port(), r.Internal.Port(), at)
	} else {
		a.messagef("%s: not forwarded any more, %s\n", portOfHostText(r), at)
	}
	a.messagef("%s", u.remark)
	if a.settings.json {
		a.printUnmapRecords("unmapped", []backends.Mapping{mappingFor(result.available[0], r)}, by, result)
	}
}

// printDeleted prints deleted entries of the table.
func (a *app) printDeleted(deleted []backends.Mapping, by []string, result *probeResult) {
	for _, m := range deleted {
		a.messagef("%s: not forwarded any more, %s\n", mappingText([]backends.Mapping{m}), byAtText(by, result))
	}
	if a.settings.json {
		a.printUnmapRecords("unmapped", deleted, by, result)
	}
}

// printUnmapRecords prints an object for each mapping.
func (a *app) printUnmapRecords(event string, ms []backends.Mapping, by []string, result *probeResult) {
	for _, m := range ms {
		m.Backend, m.Gateway, m.Lifetime = strings.Join(by, ","), result.gateway, backends.Forever // the mapping has no lifetime any more
		a.printJSON(mappingRecord{}.forMapping(event, m))
	}
}

// byAtText names the backends and the gateway of a deletion.
func byAtText(by []string, result *probeResult) string {
	return fmt.Sprintf("by %s at %s", joinNames(by), endpointText(result.gateway))
}

// portOfHostText names the internal port of a request, and its host.
func portOfHostText(r backends.Request) string {
	host := "this host"
	if r.Internal.Addr().IsValid() {
		host = r.Internal.Addr().String()
	}
	return fmt.Sprintf("%v port %d of %s", r.Protocol, r.Internal.Port(), host)
}

// explainRefusal explains why a gateway refuses to delete a mapping.
func (a *app) explainRefusal(err, keyErr error) error {
	if keyErr != nil {
		return fmt.Errorf("%w\n  → to delete a PCP mapping, unmap needs the key that created it, and there is no key: %w", err, keyErr)
	}
	path, _ := a.keyFile()
	return fmt.Errorf("%w\n  → only the user who created a PCP mapping can delete it, with the key in %s; else it ends with its lifetime", err, path)
}
