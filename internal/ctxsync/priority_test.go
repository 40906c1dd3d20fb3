package ctxsync

import (
	"context"
	"testing"
)

func TestPriorityOf(t *testing.T) {
	ctx := t.Context()
	if p := PriorityOf(ctx); p != Foreground {
		t.Errorf("without a priority: %d", p)
	}
	renewal := DefaultPriority(ctx, Renewal)
	for name, c := range map[string]struct {
		ctx  context.Context //nolint:containedctx // a test case
		want Priority
	}{
		"With":                   {WithPriority(ctx, Check), Check},
		"Default":                {renewal, Renewal},
		"Default after Default":  {DefaultPriority(renewal, Delete), Renewal},
		"With after Default":     {WithPriority(renewal, Foreground), Foreground},
		"Default after the zero": {DefaultPriority(WithPriority(ctx, Foreground), Delete), Foreground},
	} {
		if p := PriorityOf(c.ctx); p != c.want {
			t.Errorf("%s: %d, want %d", name, p, c.want)
		}
	}
}
