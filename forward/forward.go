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
	config    *Config
	forwarder *Forwarder
}

// forwarder returns the shared one.
func forwarder() (*Forwarder, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.forwarder != nil {
		return shared.forwarder, nil
	}
	f, err := New(shared.config)
	if err == nil {
		shared.forwarder = f
	}
	return f, err
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
	shared.config, shared.forwarder = config, f
	shared.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// with calls do with the shared Forwarder, which bounds it by Config.Timeout.
func with[T any](do func(context.Context, *Forwarder) (T, error)) (T, error) {
	f, err := forwarder()
	if err != nil {
		var zero T
		return zero, err
	}
	return do(context.Background(), f)
}

// Enable is [Forwarder.Enable] of the package's own Forwarder, within
// Config.Timeout.
func Enable(opts ...Option) (*Mapping, error) {
	return with(func(ctx context.Context, f *Forwarder) (*Mapping, error) { return f.Enable(ctx, opts...) })
}

// Disable is [Forwarder.Disable] of the package's own Forwarder.
func Disable(sel ...Selector) error {
	_, err := with(func(ctx context.Context, f *Forwarder) (struct{}, error) { return struct{}{}, f.Disable(ctx, sel...) })
	return err
}

// DisableAll is [Forwarder.DisableAll] of the package's own Forwarder.
func DisableAll(sel ...Selector) (int, error) {
	return with(func(ctx context.Context, f *Forwarder) (int, error) { return f.DisableAll(ctx, sel...) })
}

// Refresh is [Forwarder.Refresh] of the package's own Forwarder.
func Refresh(sel ...Selector) error {
	_, err := with(func(ctx context.Context, f *Forwarder) (struct{}, error) { return struct{}{}, f.Refresh(ctx, sel...) })
	return err
}

// ExternalIP is [Forwarder.ExternalIP] of the package's own Forwarder.
func ExternalIP() (netip.Addr, error) {
	return with(func(ctx context.Context, f *Forwarder) (netip.Addr, error) { return f.ExternalIP(ctx) })
}

// LocalIP is [Forwarder.LocalIP] of the package's own Forwarder.
func LocalIP() (netip.Addr, error) {
	return with(func(ctx context.Context, f *Forwarder) (netip.Addr, error) { return f.LocalIP(ctx) })
}

// OpenExternalPort is [Forwarder.OpenExternalPort] of the package's own
// Forwarder.
func OpenExternalPort(p backends.Protocol) (uint16, error) {
	return with(func(ctx context.Context, f *Forwarder) (uint16, error) { return f.OpenExternalPort(ctx, p) })
}

// Mappings is [Forwarder.Mappings] of the package's own Forwarder.
func Mappings() ([]Entry, error) {
	return with(func(ctx context.Context, f *Forwarder) ([]Entry, error) { return f.Mappings(ctx) })
}

// MappingAt is [Forwarder.MappingAt] of the package's own Forwarder.
func MappingAt(i int) (Entry, error) {
	return with(func(ctx context.Context, f *Forwarder) (Entry, error) { return f.MappingAt(ctx, i) })
}

// Run is [Forwarder.Run] of the package's own Forwarder.
func Run(ctx context.Context, opts ...Option) error {
	f, err := forwarder()
	if err != nil {
		return err
	}
	return f.Run(ctx, opts...)
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
