package cli

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestHandleSignals checks that a second signal exits only if it arrives at least one second
// after the first.
func TestHandleSignals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		signals []time.Duration // when they arrive
		exits   time.Duration   // when the program exits; 0: never
	}{
		"a single signal":                     {[]time.Duration{0}, 0},
		"two at the same time":                {[]time.Duration{0, 0}, 0},
		"several within a second":             {[]time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 999 * time.Millisecond}, 0},
		"after a second":                      {[]time.Duration{0, time.Second + 1}, time.Second + 1},
		"two at the same time, a third later": {[]time.Duration{0, 0, 3 * time.Second}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				h := newSignalHandler()
				interrupted, exited := -1*time.Second, time.Duration(0)
				done := make(chan struct{})
				go func() {
					h.handle(func(error) { interrupted = time.Since(start) }, func() { exited = time.Since(start) })
					close(done)
				}()
				for _, at := range test.signals {
					time.Sleep(at - time.Since(start))
					synctest.Wait()
					h.incoming <- os.Interrupt
				}
				synctest.Wait()
				if interrupted != 0 {
					t.Errorf("interrupted at %v, want at once", interrupted)
				}
				if exited != test.exits {
					t.Errorf("exited at %v, want %v; 0 is never", exited, test.exits)
				}
				if test.exits == 0 { // the next signal makes it exit
					time.Sleep(2 * time.Second)
					h.incoming <- os.Interrupt
				}
				<-done
			})
		})
	}
}
