package backends

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"time"
)

// A Backend talks one protocol with one gateway. All methods may be called by
// several goroutines at once, obey their context, and return errors that wrap
// the errors of this package.
type Backend interface {
	// String names the protocol: "natpmp", "pcp", "upnp".
	fmt.Stringer
	// Supports returns nil, or an error that wraps ErrUnsupported and says why
	// the protocol cannot express the request, or ErrInvalid. It does no I/O.
	Supports(Request) error
	// ExternalAddr asks the gateway for its external address.
	ExternalAddr(context.Context) (netip.Addr, error)
	// Map asks for a new mapping. Another external port than the wish is
	// success, unless Request.Exact.
	Map(context.Context, Request) (Mapping, error)
	// Renew asks for the mapping again, in place: it is never deleted first, and
	// stands when Renew fails. The lifetime and description come from the
	// request, the rest from the mapping. The answer may name another port.
	Renew(context.Context, Mapping, Request) (Mapping, error)
	// Unmap takes the mapping away. One that is gone already is success.
	Unmap(context.Context, Mapping) error
	// Close ends what the backend has under way, and waits for it. It does not wait
	// for the body of a loop over List or the notify of Watch: both may call it. It
	// deletes no mapping and is idempotent; other methods then fail with
	// net.ErrClosed.
	io.Closer
}

// A Lister is a Backend whose gateway tells its table.
type Lister interface {
	// List yields the gateway's table, bounded. An error ends it.
	List(context.Context) iter.Seq2[Entry, error]
}

// An Indexer is a [Lister] that can read one row without those before it.
type Indexer interface {
	Lister
	// EntryAt returns the entry at an index of the table, from 0. Past the end
	// it fails with an error that wraps ErrInvalid.
	EntryAt(ctx context.Context, index int) (Entry, error)
}

// Entry is a row of a gateway's table, whoever asked for it.
type Entry struct {
	Mapping Mapping
	// Enabled is whether the gateway forwards it now.
	Enabled bool
}

// A Watcher is a Backend that notices when its gateway may have forgotten
// what it granted, or has another external address.
type Watcher interface {
	// Watch calls notify, never twice at once, for each such change until the
	// context ends, and returns its error; or at once the error that keeps it
	// from listening.
	Watch(ctx context.Context, notify func(Change)) error
}

// Change is what a Watcher noticed, confirmed by the gateway itself.
type Change struct {
	// Kind is what to make of it.
	Kind ChangeKind
	// External is the gateway's external address now, where it told.
	External netip.Addr
	// Since is when the gateway lost its state, where it told: what it granted to
	// a request that was sent later still stands. Else it is the zero Time.
	Since time.Time
	// Reason says how it was noticed.
	Reason string
}

// ChangeKind is what happened to a gateway.
type ChangeKind uint8

// The kinds of Change. After any of them, mappings are to be asked for again.
const (
	// Announced: the gateway says that its state may have changed.
	Announced ChangeKind = iota + 1
	// Restarted: the gateway's clock says that it lost its state.
	Restarted
	// AddressChanged: the gateway has another external address.
	AddressChanged
)

// String names the kind in a word or two.
func (k ChangeKind) String() string {
	switch k {
	case Announced:
		return "announced"
	case Restarted:
		return "restarted"
	case AddressChanged:
		return "address changed"
	}
	return fmt.Sprintf("change %d", uint8(k))
}
