package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// listTimeout bounds a listing, unless --timeout is set. Slow routers list large tables one
// entry at a time.
const listTimeout = time.Minute

func (a *app) listCommand() *cobra.Command {
	ours := false
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the mappings of the gateway, if it supports UPnP",
		Long:    listHelp,
		Example: listExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withBackends(cmd.Context(), query{
				timeout: listTimeout, sufficient: isLister,
				do: func(ctx context.Context, result *probeResult) error { return a.list(ctx, result, ours) },
			})
		},
	}
	cmd.Flags().BoolVar(&ours, "ours", false, "show only the mappings that forward to this host")
	return cmd
}

// listError reports why there is no list. This differs from an empty list.
type listError struct {
	what       string   // the command or flag that needs the list
	nonListers []string // available protocols that cannot list
	reasons    []error  // errors of protocols that can list
	advice     string
}

// newListError returns a listError without reasons. Its advice is to use UPnP if --backend
// excludes it.
func (a *app) newListError(what, advice string) *listError {
	if !slices.ContainsFunc(a.selectedProtocols(), func(p protocol) bool { return p.name == upnp.Name }) {
		advice = "add upnp to --backend: only UPnP lists mappings"
	}
	return &listError{what: what, advice: advice}
}

func (e *listError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.what, backends.ErrUnsupported)
	if len(e.nonListers) > 0 {
		fmt.Fprintf(&b, ": the gateway supports %s, which cannot list mappings", joinNames(e.nonListers))
	}
	for _, err := range e.reasons {
		fmt.Fprintf(&b, "\n  %v", err)
	}
	return b.String() + "\n  → " + e.advice
}

func (e *listError) Unwrap() error { return backends.ErrUnsupported }

// list prints the table of the first backend that can list, or only its mappings to this host.
func (a *app) list(ctx context.Context, result *probeResult, onlyOurs bool) error {
	listErr := a.newListError("list", "look at the gateway's web interface")
	for _, b := range result.available {
		l, ok := b.Backend.(backends.Lister)
		if !ok {
			listErr.nonListers = append(listErr.nonListers, b.title)
			continue
		}
		n, err := a.printEntries(ctx, b, l, onlyOurs)
		if n > 0 || !errors.Is(err, backends.ErrUnsupported) {
			return err
		}
		listErr.reasons = append(listErr.reasons, err)
	}
	for _, b := range result.unavailable {
		if isLister(b.Backend) {
			listErr.reasons = append(listErr.reasons, b.err)
			listErr.advice = "switch on UPnP in the gateway's settings, or look at its web interface"
		}
	}
	return listErr
}

// printEntries prints the entries, or only those that forward to this host, even if the table
// ends with an error. It returns the number of entries in the table.
func (a *app) printEntries(ctx context.Context, b availableBackend, l backends.Lister, onlyOurs bool) (n int, failure error) {
	t := newTable("PROTOCOL", "EXTERNAL", "INTERNAL", "OURS", "FROM", "REMAINING", "ENABLED", "DESCRIPTION")
	for e, err := range l.List(ctx) {
		if err != nil {
			failure = err
			break
		}
		if n++; n == 1 {
			a.printOtherDevice(e.Mapping)
		}
		m, ours := e.Mapping, b.forwardsHere(e.Mapping)
		if onlyOurs && !ours {
			continue
		}
		if a.settings.json {
			a.printJSON(mappingRecord{Enabled: &e.Enabled, Ours: &ours, Description: m.Description}.forMapping("entry", m))
			continue
		}
		remaining := "no end"
		if m.Lifetime != backends.Forever {
			remaining = m.Lifetime.String()
		}
		t.addRow(m.Protocol.String(), endpointText(m.External), endpointText(m.Internal), yesNo(ours),
			endpointText(m.Remote), remaining, yesNo(e.Enabled), m.Description)
	}
	if !a.settings.json && (n > 0 || failure == nil) {
		a.printTable(t)
	}
	return n, failure
}
