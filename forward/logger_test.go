package forward_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
)

// blocking is a slog handler that blocks on records whose message contains a
// text, until it is released.
type blocking struct {
	text    string
	release chan struct{}
}

func (h *blocking) Enabled(context.Context, slog.Level) bool { return true }
func (h *blocking) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *blocking) WithGroup(string) slog.Handler            { return h }

func (h *blocking) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		<-h.release
	}
	return nil
}

// A logger that blocks delays no call and no renewal. Close ends in time.
func TestLoggerBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway, handler := newMemory(), &blocking{release: make(chan struct{})}
		f := forwarder(t, forward.Config{Logger: slog.New(handler)}, gateway)
		enabled := make(chan error, 2)
		for _, port := range []uint16{8080, 8081} {
			go func() {
				_, err := f.Enable(t.Context(), forward.TCP(port))
				enabled <- err
			}()
		}
		time.Sleep(time.Minute)
		if n := len(enabled); n != 2 {
			t.Errorf("the gateway granted %d mappings a minute ago, and %d of 2 calls of Enable have returned", len(gateway.live()), n)
		}
		time.Sleep(24 * time.Hour)
		if n := len(gateway.live()); n != 2 {
			t.Errorf("a day later the gateway has %d mappings, want 2", n)
		}
		closed := make(chan error, 1)
		go func() { closed <- f.Close() }()
		time.Sleep(20 * time.Second)
		if len(closed) == 0 {
			t.Error("Close has not returned after 20 s")
		}
		close(handler.release)
		for range cap(enabled) {
			if err := <-enabled; err != nil {
				t.Errorf("Enable: %v", err)
			}
		}
		<-closed
	})
}
