package upnp_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestNoReplyLimit checks that a new search follows two consecutive calls without a
// reply. After a single one, the next call uses the known address.
func TestNoReplyLimit(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		silent    []bool // for each call: whether it gets no reply
		described int
	}{
		"one":                  {[]bool{true, false}, 1},
		"two, not consecutive": {[]bool{true, false, true, false}, 1},
		"two, consecutive":     {[]bool{true, true, false}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			if err := b.Probe(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, silent := range tt.silent {
				var want error
				if silent {
					want = backends.ErrNoReply
					gw.Inject(gatewaytest.Fault{Match: isAction("GetExternalIPAddress"), Times: 1, Drop: true})
				}
				if _, err := b.ExternalAddr(t.Context()); !errors.Is(err, want) {
					t.Errorf("call %d: %v, want %v", i, err, want)
				}
			}
			if n := gw.Stats().Requests["upnp describe"]; n != tt.described {
				t.Errorf("%d requests of the description, want %d", n, tt.described)
			}
		})
	}
}

// TestExternalAddrNotStale checks that a mapping may have an external address
// queried shortly before, but not one that the device no longer has.
func TestExternalAddrNotStale(t *testing.T) {
	t.Parallel()
	for name, remap := range map[string]func(context.Context, *upnp.Backend, backends.Mapping) (backends.Mapping, error){
		"mapped": func(ctx context.Context, b *upnp.Backend, _ backends.Mapping) (backends.Mapping, error) {
			return b.Map(ctx, request(8080, 9000))
		},
		"renewed": func(ctx context.Context, b *upnp.Backend, m backends.Mapping) (backends.Mapping, error) {
			return b.Renew(ctx, m, request(8080, 9000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			b.SetExternalAge(time.Second)
			gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Delay: 20 * time.Millisecond}) // keeps the number of requests small
			m := mustMap(t, gw, b, request(8080, 9000))
			if m.External.Addr() != gw.External() {
				t.Fatalf("mapped at %v, but the gateway has %v", m.External, gw.External())
			}
			moved := netip.MustParseAddr("45.45.45.99")
			gw.SetExternal(moved)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for m.External.Addr() != moved {
				if ctx.Err() != nil {
					t.Fatalf("%s repeatedly: still at %v, but the gateway has %v", name, m.External.Addr(), moved)
				}
				var err error
				if m, err = remap(t.Context(), b, m); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestExternalAddrKept checks that a renewal keeps the external address if there is no reply
// to the request for it, but not if the device refuses to report it.
func TestExternalAddrKept(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault gatewaytest.Fault
		kept  bool
	}{
		"closed": {gatewaytest.Fault{Drop: true}, true},
		"silent": {gatewaytest.Fault{Hold: make(chan struct{})}, true},
		"fault":  {gatewaytest.Fault{Result: 501}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			m := mustMap(t, gw, b, request(8080, 9000))
			tt.fault.Match = isAction(addrAction)
			gw.Inject(tt.fault)
			want := netip.AddrPortFrom(netip.Addr{}, 9000)
			if tt.kept {
				want = m.External
			}
			renewed, err := newBackend(t, gw, upnp.Config{}).Renew(t.Context(), m, request(8080, 9000))
			if err != nil || renewed.External != want {
				t.Errorf("renewed %v, %v; want %v", renewed.External, err, want)
			}
		})
	}
}

// TestExternalAddrForms checks that a missing external address is unknown and does
// not prevent mappings, and that a private one is returned.
func TestExternalAddrForms(t *testing.T) {
	t.Parallel()
	for reported, want := range map[string]string{
		"": "", "0.0.0.0": "", "unknown": "", " 45.45.45.1 ": "45.45.45.1", "192.168.0.2": "192.168.0.2", "100.64.0.9": "100.64.0.9",
	} {
		t.Run(reported, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Status: quirks.Status{External: func(netip.Addr) string { return reported }}})
			wantAddr, _ := netip.ParseAddr(want)
			if got, err := b.ExternalAddr(t.Context()); err != nil || got != wantAddr {
				t.Errorf("ExternalAddr: %v, %v; want %v", got, err, wantAddr)
			}
			if m := mustMap(t, gw, b, request(8080, 9000)); m.External != netip.AddrPortFrom(wantAddr, 9000) {
				t.Errorf("mapped %v", m.External)
			}
		})
	}
}

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
