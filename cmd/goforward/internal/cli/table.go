package cli

import (
	"io"
	"strings"
	"text/tabwriter"
)

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

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
