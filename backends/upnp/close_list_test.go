package upnp_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestCloseInList checks that Close can be called in a loop over List, and does not
// wait for the loop. If the loop needs the device again, it ends with
// net.ErrClosed.
func TestCloseInList(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"by index":  {},
		"by ranges": {Listing: quirks.Listing{IndexFails: 401}},
	} {
		t.Run(name, func(t *testing.T) {
			gw, b := startBackend(t, router)
			addEntries(t, gw, 3)
			closed := make(chan error, 1)
			rows := 0
			for _, err := range b.List(t.Context()) {
				if err != nil {
					if rows == 0 || !errors.Is(err, net.ErrClosed) {
						t.Errorf("after %d rows: %v, want %v", rows, err, net.ErrClosed)
					}
					break
				}
				if rows++; rows > 1 {
					continue
				}
				// Close runs on another goroutine, so that the test does not hang
				// if Close waits for the loop.
				go func() { closed <- b.Close() }()
				if !returnsInTime(t, closed) {
					t.Errorf("Close, called in a loop over List, has not returned after %v, want it to return at once", closeTimeout)
					break
				}
			}
			if rows == 0 {
				t.Fatal("no row was listed")
			}
			if err := b.Close(); err != nil {
				t.Errorf("Close after the loop: %v", err)
			}
		})
	}
}

// TestCloseInFailedList checks that Close can be called after a loop over List
// received an error.
func TestCloseInFailedList(t *testing.T) {
	gw, b := startBackend(t, quirks.UPnP{})
	addEntries(t, gw, 3)
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return bytes.Contains(r.Raw, []byte("<NewPortMappingIndex>1<")) }, Drop: true,
	})
	closed := make(chan error, 1)
	rows := 0
	for _, err := range b.List(t.Context()) {
		if err == nil {
			rows++
			continue
		}
		go func() { closed <- b.Close() }()
		if !returnsInTime(t, closed) {
			t.Errorf("Close, called after List failed with %v, has not returned after %v, want it to return at once", err, closeTimeout)
		}
		break
	}
	if rows != 1 {
		t.Errorf("%d rows before the error, want 1", rows)
	}
}

// TestCloseInNotify checks that the notify function of Watch can call Close, and
// that Close does not wait for it.
func TestCloseInNotify(t *testing.T) {
	w := watch(t, gatewaytest.Config{})
	closed, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		ended <- w.backend.Watch(t.Context(), func(backends.Change) {
			go func() { closed <- w.backend.Close() }()
			if !returnsInTime(t, closed) {
				t.Errorf("Close, called by notify, has not returned after %v, want it to return at once", closeTimeout)
			}
		})
	}()
	for range 200 { // until Watch listens
		w.UPnP().Byebye()
		ctx, cancel := context.WithTimeout(t.Context(), closeTimeout/100)
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Watch returned %v, want %v after notify called Close", err, net.ErrClosed)
			}
			cancel()
			return
		case <-ctx.Done():
			cancel()
		}
	}
	t.Error("Watch has not returned after its notify called Close")
}

// closeTimeout is the time after which a test assumes that Close blocks.
const closeTimeout = 5 * time.Second

// returnsInTime waits up to closeTimeout for the result of a Close, and reports
// whether it arrived. A result other than nil fails the test.
func returnsInTime(t *testing.T, result <-chan error) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), closeTimeout)
	defer cancel()
	select {
	case err := <-result:
		if err != nil {
			t.Errorf("Close: %v", err)
		}
		return true
	case <-ctx.Done():
		return false
	}
}
