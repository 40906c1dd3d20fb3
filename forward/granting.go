package forward

import (
	"context"
	"sync/atomic"
)

// grants counts the requests under way that may grant a mapping which nobody
// knows of before the answer: what is closed meanwhile can be taken away only
// after it.
type grants struct{ under atomic.Int32 }

type grantsKey struct{}

// with makes granting count here.
func (g *grants) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, grantsKey{}, g)
}

// granting counts a request of this context, until the function that it returns
// is called.
func granting(ctx context.Context) (done func()) {
	g, ok := ctx.Value(grantsKey{}).(*grants)
	if !ok {
		return func() {}
	}
	g.under.Add(1)
	return func() { g.under.Add(-1) }
}
