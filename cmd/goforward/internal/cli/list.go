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
const listTime = time.Minute

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List what the gateway forwards, where it can tell",
		Long:    listHelp,
		Example: listExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withBackends(cmd.Context(), inquiry{most: listTime, enough: isLister, do: a.list})
		},
	}
}

// cannotListError says why there is no list, which is not the same as an empty one.
type cannotListError struct {
	spoken  []string // that have no list
	reasons []error  // of those that have one
	advice  string
}

func (e *cannotListError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "list: %v", backends.ErrUnsupported)
	switch len(e.spoken) {
	case 0:
	case 1:
		fmt.Fprintf(&b, ": the gateway speaks %s, which has no way to ask what is forwarded", e.spoken[0])
	default:
		fmt.Fprintf(&b, ": the gateway speaks %s, neither of which has a way to ask what is forwarded", enumerate(e.spoken))
	}
	for _, err := range e.reasons {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return b.String() + "\n  → " + e.advice
}

func (e *cannotListError) Unwrap() error { return backends.ErrUnsupported }

// list prints the table of the first backend that has one.
func (a *app) list(ctx context.Context, s *survey) error {
	cannot := cannotListError{advice: "look at the gateway's own pages"}
	for _, b := range s.found {
		l, ok := b.Backend.(backends.Lister)
		if !ok {
			cannot.spoken = append(cannot.spoken, b.title)
			continue
		}
		n, err := a.printEntries(ctx, b, l)
		if n > 0 || !errors.Is(err, backends.ErrUnsupported) {
			return err
		}
		cannot.reasons = append(cannot.reasons, err)
	}
	for _, b := range s.silent {
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
func (a *app) printEntries(ctx context.Context, b found, l backends.Lister) (n int, failure error) {
	t := newTable("PROTOCOL", "EXTERNAL", "INTERNAL", "OURS", "FROM", "REMAINING", "ENABLED", "DESCRIPTION")
	for e, err := range l.List(ctx) {
		if err != nil {
			failure = err
			break
		}
		n++
		m, ours := e.Mapping, b.ours(e.Mapping)
		if a.settings.json {
			a.object(record{Enabled: &e.Enabled, Ours: &ours, Description: m.Description}.of("entry", m))
			continue
		}
		remaining := "no end"
		if m.Lifetime != backends.Forever {
			remaining = m.Lifetime.String()
		}
		t.row(m.Protocol.String(), endpointText(m.External), m.Internal.String(), yesNo(ours),
			endpointText(m.Remote), remaining, yesNo(e.Enabled), m.Description)
	}
	if !a.settings.json && (n > 0 || failure == nil) {
		a.table(t)
	}
	return n, failure
}

// ours reports whether a mapping leads to this host, whoever made it.
func (b found) ours(m backends.Mapping) bool {
	return m.Internal.Addr().IsValid() && m.Internal.Addr() == b.local
}
