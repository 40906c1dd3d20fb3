package discover

import (
	"sync"
	"unsafe"

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
	cancel, err := notifier{
		register: []func() (uintptr, error){
			func() (uintptr, error) { return register(procNotifyIPInterfaceChange) },
			func() (uintptr, error) { return register(procNotifyUnicastIPAddressChange) },
			func() (uintptr, error) { return register(procNotifyRouteChange2) },
		},
		// CancelMibChangeNotify2 waits for a running callback.
		cancel: func(handle uintptr) error { return call(procCancelMibChangeNotify2, handle) },
	}.start()
	stop = func() {
		if cancel != nil {
			cancel()
		}
		hintChannels.mu.Lock()
		defer hintChannels.mu.Unlock()
		delete(hintChannels.all, c)
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return c, stop, nil
}

// register registers callback with a function for one kind of changes, for both address
// families.
func register(notify *windows.LazyProc) (handle uintptr, err error) {
	const noContext, noInitialCall = 0, 0
	err = call(notify, windows.AF_UNSPEC, callback(), noContext, noInitialCall, uintptr(unsafe.Pointer(&handle)))
	return handle, err
}
