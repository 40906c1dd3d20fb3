package discover

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Watch calls notify after routes, addresses, links or policy rules changed, until ctx
// ends, and returns the cause of that end (context.Cause). It fails earlier only if the
// system does not allow watching.
//
// Changes within 100 ms cause one call. Calls never overlap; changes during a call cause
// another call. A call can be spurious (for example, after an address was renewed): notify
// should read the state again. Watch does not return while notify runs.
//
// Watch reports changes from the moment at which it is called, so start it before reading
// the state. On Linux, the kernel reports changes. On macOS, FreeBSD, OpenBSD, NetBSD and
// Windows, Watch compares the state after each hint from the system, and also every 30
// seconds; if the system gives no hints, it compares the state every 5 seconds. On other
// systems, Watch fails at once with errors.ErrUnsupported.
func Watch(ctx context.Context, notify func()) error {
	w, err := openWatcher()
	if err != nil {
		return err
	}
	return w.run(ctx, notify)
}

// The intervals at which snapshots are compared: pollEvery if the system gives no hints, and
// pollWithHints if it does. Polling also covers missing hints: the code that receives
// hints was never run.
const (
	pollEvery     = 5 * time.Second
	pollWithHints = 30 * time.Second
)

// pollHints polls with the hints of open, until ctx ends. If open fails, it polls more often,
// without hints.
func pollHints(ctx context.Context, open func() (hints <-chan struct{}, stop func(), err error), snapshot func() string, notify func()) error {
	hints, stop, err := open()
	if err != nil {
		return poll(ctx, pollEvery, nil, snapshot, notify)
	}
	defer stop()
	return poll(ctx, pollWithHints, hints, snapshot, notify)
}

// notifier has the functions that register for notifications of Windows. If a function of
// the system is missing, register and cancel fail with errMissing.
type notifier struct {
	register []func() (handle uintptr, err error)
	cancel   func(handle uintptr) error
}

// start registers for all notifications. If a registration fails or returns no handle,
// start cancels the others and fails: Wine reports success and notifies of nothing.
func (n notifier) start() (stop func(), err error) {
	var handles []uintptr
	stop = func() {
		for _, h := range handles {
			_ = n.cancel(h)
		}
	}
	for _, register := range n.register {
		h, err := register()
		if err == nil && h == 0 {
			err = errMissing
		}
		if err != nil {
			stop()
			return nil, fmt.Errorf("discover: change notifications: %w", err)
		}
		handles = append(handles, h)
	}
	return stop, nil
}

// poll takes a snapshot at the given interval and shortly after each hint, until ctx ends.
// It calls notify if a snapshot differs from the previous one.
func poll(ctx context.Context, every time.Duration, hints <-chan struct{}, snapshot func() string, notify func()) error {
	previous := snapshot()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-hints:
			if settled == nil {
				settled = time.After(settleTime)
			}
			continue
		case <-settled:
			settled = nil
		case <-tick.C:
		}
		current := snapshot()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if current != previous {
			previous = current
			notify()
		}
	}
}

// settleTime is the time for which changes are collected before notify is called: bringing
// up an interface causes a dozen changes.
const settleTime = 100 * time.Millisecond

// snapshot describes gateways, links and addresses, for comparison only. It contains
// errors, because it is a change if an error appears or disappears.
func snapshot() string {
	gateways, err := Gateways()
	s := fmt.Sprintln(gateways, err)
	interfaces, err := net.Interfaces()
	s += fmt.Sprintln(err)
	for _, ifi := range interfaces {
		addrs, err := ifi.Addrs()
		s += fmt.Sprintln(ifi.Index, ifi.Name, ifi.Flags, addrs, err)
	}
	return s
}
