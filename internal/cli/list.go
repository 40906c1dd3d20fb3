package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List what the gateway forwards, where it can tell",
		Long:    listHelp,
		Example: listExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withBackends(cmd.Context(), nil, nil, a.list)
		},
	}
}

// cannotListError says why there is no list, which is not the same as an empty one.
type cannotListError struct {
	spoken []string
}

func (e *cannotListError) Error() string {
	which := "which has no way"
	if len(e.spoken) > 1 {
		which = "neither of which has a way"
	}
	return fmt.Sprintf("list: %v: the gateway speaks %s, %s to ask what is forwarded\n"+
		"  → look at the gateway's own pages", backends.ErrUnsupported, strings.Join(e.spoken, " and "), which)
}

func (e *cannotListError) Unwrap() error { return backends.ErrUnsupported }

// list prints the table of the first backend that has one.
func (a *app) list(ctx context.Context, all []found) error {
	var cannot cannotListError
	for _, b := range all {
		cannot.spoken = append(cannot.spoken, b.title)
		l, ok := b.Backend.(backends.Lister)
		if !ok {
			continue
		}
		return a.printEntries(ctx, l)
	}
	return &cannot
}

// printEntries prints what there is, also where the table breaks off.
func (a *app) printEntries(ctx context.Context, l backends.Lister) error {
	var failure error
	t := newTable("PROTOCOL", "EXTERNAL", "INTERNAL", "REMAINING", "ENABLED", "DESCRIPTION")
	for e, err := range l.List(ctx) {
		if err != nil {
			failure = err
			break
		}
		if a.settings.json {
			a.object(record{Enabled: &e.Enabled, Description: e.Mapping.Description}.of("entry", e.Mapping))
			continue
		}
		remaining := "no end"
		if e.Mapping.Lifetime != backends.Forever {
			remaining = e.Mapping.Lifetime.String()
		}
		t.row(e.Mapping.Protocol.String(), endpointText(e.Mapping.External), e.Mapping.Internal.String(),
			remaining, yesNo(e.Enabled), e.Mapping.Description)
	}
	if !a.settings.json {
		a.table(t)
	}
	return failure
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// table is lines of cells.
type table struct {
	rows [][]string
}

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// table prints a table. Cells are cleaned one by one: a tab or a newline in one
// must not make another.
func (a *app) table(t *table) {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, cells := range t.rows {
		var line strings.Builder
		for i, cell := range cells {
			if cell = strings.ReplaceAll(clean(cell), "\n", `\n`); cell == "" {
				cell = "-"
			}
			line.WriteString(cell)
			if i < len(cells)-1 {
				line.WriteByte('\t')
			}
		}
		_, _ = io.WriteString(w, line.String()+"\n")
	}
	_ = w.Flush() // the stream remembers a failure
}
