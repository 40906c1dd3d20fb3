package forward

import (
	"context"
	"net/netip"
	"sync"

	"github.com/natforward/goforward/backends"
)

// shared holds the Forwarder of the package-level functions. It is created when first needed.
var shared struct {
	mu        sync.Mutex
	config    Config // checked by Configure, or the zero Config
	forwarder *Forwarder
}

// forwarder returns the Forwarder of the package-level functions.
func forwarder() *Forwarder {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.forwarder == nil {
		shared.forwarder, _ = New(&shared.config) // cannot fail: the config is valid
	}
	return shared.forwarder
}

// Configure sets the configuration of the package-level functions. Call it before the others:
// it closes the mappings of an earlier Forwarder first. An invalid config fails with
// backends.ErrInvalid and changes nothing.
func Configure(config *Config) error {
	f, err := New(config)
	if err != nil {
		return err
	}
	shared.mu.Lock()
	old := shared.forwarder
	shared.config, shared.forwarder = f.config, f
	shared.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// Enable calls [Forwarder.Enable] on the package's own Forwarder. It is bounded by
// Config.RequestTimeout.
func Enable(opts ...Option) (*Mapping, error) {
	return forwarder().Enable(context.Background(), opts...)
}

// Disable calls [Forwarder.Disable] on the package's own Forwarder.
func Disable(sel ...Selector) error { return forwarder().Disable(context.Background(), sel...) }

// DisableAll calls [Forwarder.DisableAll] on the package's own Forwarder.
func DisableAll(sel ...Selector) (int, error) {
	return forwarder().DisableAll(context.Background(), sel...)
}

// Refresh calls [Forwarder.Refresh] on the package's own Forwarder.
func Refresh(sel ...Selector) error { return forwarder().Refresh(context.Background(), sel...) }

// ExternalIP calls [Forwarder.ExternalIP] on the package's own Forwarder.
func ExternalIP() (netip.Addr, error) { return forwarder().ExternalIP(context.Background()) }

// LocalIP calls [Forwarder.LocalIP] on the package's own Forwarder.
func LocalIP() (netip.Addr, error) { return forwarder().LocalIP(context.Background()) }

// OpenExternalPort calls [Forwarder.OpenExternalPort] on the package's own Forwarder.
func OpenExternalPort(p backends.Protocol) (uint16, error) {
	return forwarder().OpenExternalPort(context.Background(), p)
}

// Mappings calls [Forwarder.Mappings] on the package's own Forwarder.
func Mappings() ([]Entry, error) { return forwarder().Mappings(context.Background()) }

// MappingAt calls [Forwarder.MappingAt] on the package's own Forwarder.
func MappingAt(i int) (Entry, error) { return forwarder().MappingAt(context.Background(), i) }

// Run calls [Forwarder.Run] on the package's own Forwarder.
func Run(ctx context.Context, opts ...Option) error { return forwarder().Run(ctx, opts...) }

// Close calls [Forwarder.Close] on the package's own Forwarder. A later call of a
// package-level function creates a new one.
func Close() error {
	shared.mu.Lock()
	f := shared.forwarder
	shared.forwarder = nil
	shared.mu.Unlock()
	if f == nil {
		return nil
	}
	return f.Close()
}
