package ctxsync

import (
	"context"
	"time"
)

// Sleep returns nil after a time, or the cause of the end of ctx if that is sooner.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
