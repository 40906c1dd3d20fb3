package discover

import (
	"fmt"
	"sync"

	"golang.org/x/sys/windows"
)

// hintChannels has the channels that receive hints.
var hintChannels = struct {
	mu  sync.Mutex
	all map[chan struct{}]struct{}
}{all: map[chan struct{}]struct{}{}}

// callback sends a hint to every channel. Callbacks of Windows are never freed, so all
// watchers share one.
var callback = sync.OnceValue(func() uintptr {
	return windows.NewCallback(func(_, _ uintptr, _ uint32) uintptr {
		hintChannels.mu.Lock()
		defer hintChannels.mu.Unlock()
		for c := range hintChannels.all {
			sendHint(c)
		}
		return 0
	})
})

// openHints registers with the IP helper API for changes of interfaces, addresses and
// routes. stop cancels the registrations.
func openHints() (hints <-chan struct{}, stop func(), err error) {
	c := make(chan struct{}, 1)
	hintChannels.mu.Lock()
	hintChannels.all[c] = struct{}{}
	hintChannels.mu.Unlock()
	var handles [3]windows.Handle
	stop = func() {
		for _, h := range handles {
			if h != 0 {
				_ = windows.CancelMibChangeNotify2(h) // waits for a running callback
			}
		}
		hintChannels.mu.Lock()
		defer hintChannels.mu.Unlock()
		delete(hintChannels.all, c)
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
