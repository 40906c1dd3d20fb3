package backends

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"time"
)

// A Backend implements one protocol for one gateway. Its methods may be called by
// several goroutines at once. They return when their context ends, and their errors
// wrap the errors of this package.
type Backend interface {
	// String returns the name of the protocol: "natpmp", "pcp", "upnp".
	fmt.Stringer
	// Supports returns nil if the protocol can express the request. Otherwise its
	// error wraps ErrUnsupported and has the reason, or wraps ErrInvalid. It does
	// no I/O.
	Supports(Request) error
	// ExternalAddr requests the external address from the gateway.
	ExternalAddr(context.Context) (netip.Addr, error)
	// Map requests a new mapping. It succeeds even if the gateway grants another
	// external port than requested, unless Request.Exact is set.
	Map(context.Context, Request) (Mapping, error)
	// Renew requests the mapping again without deleting it first. If Renew fails,
	// the mapping remains active. The lifetime and description are from the
	// request, all other parameters from the mapping. The result may have another
	// external port.
	Renew(context.Context, Mapping, Request) (Mapping, error)
	// Unmap deletes the mapping. It also succeeds if the mapping no longer exists.
	Unmap(context.Context, Mapping) error
	// Close ends the calls in progress and waits for them. It does not wait for the
	// body of a loop over List or the notify function of Watch: both may call
	// Close. Close deletes no mapping and is idempotent. Later calls of other
	// methods fail with net.ErrClosed.
	io.Closer
}

// A Lister is a Backend whose gateway can list its mapping table.
type Lister interface {
	// List yields the entries of the gateway's table, up to a limit. An error ends
	// the list.
	List(context.Context) iter.Seq2[Entry, error]
}

// An Indexer is a [Lister] that can read one entry without the entries before it.
type Indexer interface {
	Lister
	// EntryAt returns the entry at an index of the table, counted from 0. If the
	// index is past the end, the error wraps ErrInvalid.
	EntryAt(ctx context.Context, index int) (Entry, error)
}

// Entry is an entry of a gateway's table. Any host may have created it.
type Entry struct {
	Mapping Mapping
	// Enabled reports whether the gateway forwards the mapping now.
	Enabled bool
}

// A Watcher is a Backend that detects when its gateway may have lost its mappings
// or has another external address.
type Watcher interface {
	// Watch calls notify for each change until the context ends, and returns the
	// error of the context. The calls of notify do not overlap. If Watch cannot
	// listen for changes, it returns the error at once.
	Watch(ctx context.Context, notify func(Change)) error
}

// A Checker is a Backend that can find out whether its gateway still has a mapping.
type Checker interface {
	// Check finds out whether the gateway has a mapping that it granted to this backend. It
	// sends few and small requests and changes nothing. The replies also show the changes
	// that Watch reports.
	//
	// Check returns nil if the gateway has the mapping. It returns an error that wraps
	// ErrNoMapping if the gateway does not have it, and ErrNoReply if the gateway does not
	// reply. If the gateway replied, but only a renewal can show whether it has the mapping,
	// the error wraps ErrUnsupported. After any other error, the state of the mapping is
	// unknown: for example, Watch is about to report a change.
	Check(context.Context, Mapping) error
}

// Change is a change that a Watcher detected and the gateway confirmed.
type Change struct {
	// Kind is the kind of the change.
	Kind ChangeKind
	// External is the gateway's present external address, if the gateway reported
	// it.
	External netip.Addr
	// Since is when the gateway lost its state, if that is known: mappings granted
	// to requests that were sent later are still active. Otherwise it is the zero
	// Time.
	Since time.Time
	// Reason describes how the change was detected.
	Reason string
}

// ChangeKind is the kind of a Change.
type ChangeKind uint8

// The kinds of Change. After each of them, all mappings should be renewed.
const (
	// Announced means that the gateway announced a possible change of its state.
	Announced ChangeKind = iota + 1
	// Restarted means that the gateway's epoch shows a loss of its state.
	Restarted
	// AddressChanged means that the gateway has another external address.
	AddressChanged
)

// String returns the name of the kind.
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
