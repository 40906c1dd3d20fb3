package forward

import (
	"context"
	"net/netip"
	"sync"

	"github.com/natforward/goforward/backends"
)

// shared is the Forwarder of the package-level calls, made when first needed.
var shared struct {
	mu        sync.Mutex
	config    Config // checked by Configure, or zero
	forwarder *Forwarder
}

// forwarder returns the shared one.
func forwarder() *Forwarder {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.forwarder == nil {
		shared.forwarder, _ = New(&shared.config) // does not fail: the config is valid
	}
	return shared.forwarder
}

// Configure sets up the Forwarder of the package-level calls. Call it before
// them: the mappings of an earlier one are closed first. An invalid config
// fails with backends.ErrInvalid, and changes nothing.
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

// Enable is [Forwarder.Enable] of the package's own Forwarder, within
// Config.RequestTimeout.
func Enable(opts ...Option) (*Mapping, error) {
	return forwarder().Enable(context.Background(), opts...)
}

// Disable is [Forwarder.Disable] of the package's own Forwarder.
func Disable(sel ...Selector) error {
	return forwarder().Disable(context.Background(), sel...)
}

// DisableAll is [Forwarder.DisableAll] of the package's own Forwarder.
func DisableAll(sel ...Selector) (int, error) {
	return forwarder().DisableAll(context.Background(), sel...)
}

// Refresh is [Forwarder.Refresh] of the package's own Forwarder.
func Refresh(sel ...Selector) error {
	return forwarder().Refresh(context.Background(), sel...)
}

// ExternalIP is [Forwarder.ExternalIP] of the package's own Forwarder.
func ExternalIP() (netip.Addr, error) {
	return forwarder().ExternalIP(context.Background())
}

// LocalIP is [Forwarder.LocalIP] of the package's own Forwarder.
func LocalIP() (netip.Addr, error) {
	return forwarder().LocalIP(context.Background())
}

// OpenExternalPort is [Forwarder.OpenExternalPort] of the package's own
// Forwarder.
func OpenExternalPort(p backends.Protocol) (uint16, error) {
	return forwarder().OpenExternalPort(context.Background(), p)
}

// Mappings is [Forwarder.Mappings] of the package's own Forwarder.
func Mappings() ([]Entry, error) {
	return forwarder().Mappings(context.Background())
}

// MappingAt is [Forwarder.MappingAt] of the package's own Forwarder.
func MappingAt(i int) (Entry, error) {
	return forwarder().MappingAt(context.Background(), i)
}

// Run is [Forwarder.Run] of the package's own Forwarder.
func Run(ctx context.Context, opts ...Option) error {
	return forwarder().Run(ctx, opts...)
}

// Close is [Forwarder.Close] of the package's own Forwarder. A later call
// makes a new one.
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
