package ctxsync

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestQueueOrder checks that waiters become ready one at a time in each queue, by priority and
// then by age.
func TestQueueOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queues[string]
		_, leave := q.Enter(WithPriority(t.Context(), Check), "a")
		other, leaveOther := q.Enter(t.Context(), "b")
		<-other // ready at once
		leaveOther()
		var got []string // names and times
		began := time.Now()
		for _, round := range []string{"1", "2"} {
			for _, p := range []Priority{Check, Foreground, Renewal, Delete} {
				ctx := WithPriority(t.Context(), p)
				go func() {
					ready, leave := q.Enter(ctx, "a")
					defer leave()
					<-ready
					name := [...]string{"foreground", "delete", "renewal", "check"}[p]
					got = append(got, fmt.Sprint(name, round, " ", time.Since(began)))
					time.Sleep(time.Second)
				}()
				synctest.Wait()
			}
		}
		if len(got) != 0 {
			t.Errorf("%v are ready before their turn", got)
		}
		leave()
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []string{
			"foreground1 0s", "foreground2 1s", "delete1 2s", "delete2 3s", "renewal1 4s", "renewal2 5s", "check1 6s", "check2 7s",
		}
		if !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
		if len(q.waiters) != 0 {
			t.Errorf("waiters remain: %v", q.waiters)
		}
	})
}

// TestLeaveBeforeReady checks that waiters that leave early do not change the order of the
// others, and that empty queues are deleted.
func TestLeaveBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queues[string]
		var ready []<-chan struct{}
		var leave []func()
		for range 5 {
			r, l := q.Enter(t.Context(), "a")
			ready, leave = append(ready, r), append(leave, l)
		}
		isReady := func(want ...bool) {
			t.Helper()
			for i, r := range ready {
				select {
				case <-r:
					if !want[i] {
						t.Errorf("waiter %d is ready", i)
					}
				default:
					if want[i] {
						t.Errorf("waiter %d is not ready", i)
					}
				}
			}
		}
		isReady(true, false, false, false, false)
		leave[1]()
		leave[4]()
		isReady(true, false, false, false, false)
		leave[0]()
		isReady(true, false, true, false, false)
		leave[2]() // leave without waiting to become ready
		isReady(true, false, true, true, false)
		leave[3]()
		if len(q.waiters) != 0 {
			t.Errorf("waiters remain: %v", q.waiters)
		}
	})
}
