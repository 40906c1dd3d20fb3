package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/natforward/goforward/backends"
)

// unmapDryRun prints what unmapProtocol would delete: the matching entries of the table, or the
// requests if the gateway does not list its table or not all of it. It sends no deletion.
func (a *app) unmapDryRun(ctx context.Context, u *unmapRequest, r backends.Request, result *probeResult) ([]backends.Mapping, error) {
	var matching []backends.Mapping
	var by []string
	var unsupported, failures []error
	isComplete := false // a table was read to its end
	for _, b := range withListersLast(result.available) {
		if err := u.checkBackend(b, r); err != nil {
			unsupported = append(unsupported, err)
			continue
		}
		if l, lists := b.Backend.(backends.Lister); lists && !b.gateway.Addr().Is6() {
			s := u.selectEntries(ctx, b, l, r)
			failures = append(failures, s.errs...)
			matching = append(matching, s.matching...)
			isComplete = isComplete || s.listErr == nil
			triesLikely := !s.seen && !u.all && u.hostKnown(b)
			switch likely := likelyMapping(b, r); {
			case s.listErr == nil || u.all:
			case !u.hostKnown(b):
				failures = append(failures, s.listErr)
			case triesLikely && len(s.matching) > 0:
				u.remark += fmt.Sprintf("The gateway does not list all its mappings: unmap also requests the deletion of external port %d.\n", likely.External.Port())
			}
			if len(s.matching) == 0 && !triesLikely {
				continue
			}
		}
		by = append(by, b.name)
	}
	switch {
	case len(failures) > 0 && len(matching) == 0:
	case len(unsupported) == len(result.available):
		failures = unsupported
	default:
		a.printUnmapDryRun(u, r, matching, isComplete, by, result)
	}
	return matching, errors.Join(failures...)
}

// printUnmapDryRun prints the entries that unmap would delete. If there are none, it prints the
// requests, or with a complete table a remark.
func (a *app) printUnmapDryRun(u *unmapRequest, r backends.Request, matching []backends.Mapping, isComplete bool, by []string, result *probeResult) {
	switch {
	case len(matching) > 0 || !isComplete:
	case u.anyHost():
		a.messagef("%v port %d: the gateway lists no mapping to port %d of any host\n", r.Protocol, r.External.Port(), r.Internal.Port())
	case len(by) > 0:
		a.messagef("%s: the gateway lists no such mapping; unmap requests the deletion nevertheless, %s\n", portOfHostText(r), byAtText(by, result))
	default:
		a.messagef("%s: the gateway lists no such mapping\n", portOfHostText(r))
	}
	a.messagef("%s", u.remark)
	switch {
	case len(matching) == 0 && (isComplete || len(by) == 0):
	case a.settings.json:
		if len(matching) == 0 {
			matching = []backends.Mapping{mappingFor(result.available[0], r)}
		}
		a.printUnmapRecords("dry_run", matching, by, result)
	case len(matching) == 0:
		a.resultf("%s: unmap would request the deletion, %s\n", portOfHostText(r), byAtText(by, result))
	}
	if a.settings.json {
		return
	}
	for _, m := range matching {
		a.resultf("%s: would be deleted, %s\n", mappingText([]backends.Mapping{m}), byAtText(by, result))
	}
}
