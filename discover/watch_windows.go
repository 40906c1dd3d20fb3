package discover

import (
	"fmt"
	"sync"

	"golang.org/x/sys/windows"
)

// hinted are those who are told of changes.
var hinted = struct {
	mu  sync.Mutex
	all map[chan struct{}]struct{}
}{all: map[chan struct{}]struct{}{}}

// callback tells them. The system's callbacks are never freed, so there is one
// for all.
var callback = sync.OnceValue(func() uintptr {
	return windows.NewCallback(func(_, _ uintptr, _ uint32) uintptr {
		hinted.mu.Lock()
		defer hinted.mu.Unlock()
		for c := range hinted.all {
			hint(c)
		}
		return 0
	})
})

// openHints has the IP helper tell of changes of interfaces, addresses and
// routes.
func openHints() (hints <-chan struct{}, stop func(), err error) {
	c := make(chan struct{}, 1)
	hinted.mu.Lock()
	hinted.all[c] = struct{}{}
	hinted.mu.Unlock()
	var handles [3]windows.Handle
	stop = func() {
		for _, h := range handles {
			if h != 0 {
				_ = windows.CancelMibChangeNotify2(h) // waits for a call that runs
			}
		}
		hinted.mu.Lock()
		defer hinted.mu.Unlock()
		delete(hinted.all, c)
	}
	const anyFamily = windows.AF_UNSPEC
	for i, register := range []func(h *windows.Handle) error{
		func(h *windows.Handle) error {
			return windows.NotifyIpInterfaceChange(anyFamily, callback(), nil, false, h)
		},
		func(h *windows.Handle) error {
			return windows.NotifyUnicastIpAddressChange(anyFamily, callback(), nil, false, h)
		},
		func(h *windows.Handle) error {
			return windows.NotifyRouteChange2(anyFamily, callback(), nil, false, h)
		},
	} {
		if err := register(&handles[i]); err != nil {
			stop()
			return nil, nil, fmt.Errorf("discover: change notifications: %w", err)
		}
	}
	return c, stop, nil
}
