package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
)

// listTime bounds a listing, unless --timeout does: large tables are told one
// entry at a time, by routers that are not quick.
const listTimeout = time.Minute

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List what the gateway forwards, where it can tell",
		Long:    listHelp,
		Example: listExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withBackends(cmd.Context(), query{timeout: listTimeout, sufficient: isLister, do: a.list})
		},
	}
}

// cannotListError says why there is no list, which is not the same as an empty one.
type listError struct {
	unlistable  []string // that have no list
	reasons []error  // of those that have one
	advice  string
}

func (e *listError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "list: %v", backends.ErrUnsupported)
	switch len(e.unlistable) {
	case 0:
	case 1:
		fmt.Fprintf(&b, ": the gateway speaks %s, which has no way to ask what is forwarded", e.unlistable[0])
	default:
		fmt.Fprintf(&b, ": the gateway speaks %s, neither of which has a way to ask what is forwarded", joinNames(e.unlistable))
	}
	for _, err := range e.reasons {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return b.String() + "\n  → " + e.advice
}

func (e *listError) Unwrap() error { return backends.ErrUnsupported }

// list prints the table of the first backend that has one.
func (a *app) list(ctx context.Context, s *probeResult) error {
	cannot := listError{advice: "look at the gateway's own pages"}
	for _, b := range s.available {
		l, ok := b.Backend.(backends.Lister)
		if !ok {
			cannot.unlistable = append(cannot.unlistable, b.title)
			continue
		}
		n, err := a.printEntries(ctx, b, l)
		if n > 0 || !errors.Is(err, backends.ErrUnsupported) {
			return err
		}
		cannot.reasons = append(cannot.reasons, err)
	}
	for _, b := range s.unavailable {
		if isLister(b.Backend) {
			cannot.reasons = append(cannot.reasons, b.err)
			cannot.advice = "switch on UPnP in the gateway's settings, or look at its own pages"
		}
	}
	return &cannot
}

func isLister(b backends.Backend) bool {
	_, is := b.(backends.Lister)
	return is
}

// printEntries prints what there is, also where the table breaks off, and
// returns how many that are.
func (a *app) printEntries(ctx context.Context, b availableBackend, l backends.Lister) (n int, failure error) {
	t := newTable("PROTOCOL", "EXTERNAL", "INTERNAL", "OURS", "FROM", "REMAINING", "ENABLED", "DESCRIPTION")
	for e, err := range l.List(ctx) {
		if err != nil {
			failure = err
			break
		}
		n++
		m, ours := e.Mapping, b.leadsHere(e.Mapping)
		if a.settings.json {
			a.printJSON(mappingRecord{Enabled: &e.Enabled, Ours: &ours, Description: m.Description}.forMapping("entry", m))
			continue
		}
		remaining := "no end"
		if m.Lifetime != backends.Forever {
			remaining = m.Lifetime.String()
		}
		t.addRow(m.Protocol.String(), endpointText(m.External), m.Internal.String(), yesNo(ours),
			endpointText(m.Remote), remaining, yesNo(e.Enabled), m.Description)
	}
	if !a.settings.json && (n > 0 || failure == nil) {
		a.printTable(t)
	}
	return n, failure
}

// ours reports whether a mapping leads to this host, whoever made it.
func (b availableBackend) leadsHere(m backends.Mapping) bool {
	return m.Internal.Addr().IsValid() && m.Internal.Addr() == b.localAddr
}
