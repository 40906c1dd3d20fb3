package main

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A second signal counts only if it comes at least a second after the first.
func TestObey(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		signals []time.Duration // when they come
		leaves  time.Duration   // when the program is left; 0: never
	}{
		"one":                   {[]time.Duration{0}, 0},
		"at once":               {[]time.Duration{0, 0}, 0},
		"soon":                  {[]time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 999 * time.Millisecond}, 0},
		"after a second":        {[]time.Duration{0, time.Second + 1}, time.Second + 1},
		"doubled, then a third": {[]time.Duration{0, 0, 3 * time.Second}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				signals := make(chan os.Signal, 1)
				interrupted, left := -1*time.Second, time.Duration(0)
				done := make(chan struct{})
				go func() {
					obey(signals, func() { interrupted = time.Since(begun) }, func() { left = time.Since(begun) })
					close(done)
				}()
				for _, at := range test.signals {
					time.Sleep(at - time.Since(begun))
					synctest.Wait()
					select { // as os/signal does
					case signals <- os.Interrupt:
					default:
					}
				}
				synctest.Wait()
				if interrupted != 0 {
					t.Errorf("interrupted at %v, want at once", interrupted)
				}
				if left != test.leaves {
					t.Errorf("left at %v, want %v; 0 is never", left, test.leaves)
				}
				if test.leaves == 0 { // the next signal ends it
					time.Sleep(2 * time.Second)
					signals <- os.Interrupt
				}
				<-done
			})
		})
	}
}
