package upnp

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
)

// PortMapping is an entry of a gateway's table.
type PortMapping struct {
	// Remote is the only host admitted. The zero Addr: anyone.
	Remote       netip.Addr
	ExternalPort uint16
	Protocol     backends.Protocol
	// Internal is where it is forwarded to. In answers, the address is the zero
	// Addr where the gateway names no address.
	Internal netip.AddrPort
	Enabled  bool
	// Description is cut for the wire to 63 bytes of plain ASCII, and never
	// blank. In answers it is printable and at most 256 bytes.
	Description string
	// Lease is sent in seconds, rounded up; 0 and backends.Forever are permanent
	// with IGD version 1 and the longest that the gateway has with version 2. In
	// answers 0 is permanent, or not told, and the rest is often fiction.
	Lease time.Duration
}

// PortMappingKey is what tells the entries of a gateway's table apart.
type PortMappingKey struct {
	// Remote is the only host admitted. The zero Addr: anyone.
	Remote       netip.Addr
	ExternalPort uint16
	Protocol     backends.Protocol
}

// Key returns what tells the entry apart.
func (m PortMapping) Key() PortMappingKey {
	return PortMappingKey{Remote: m.Remote, ExternalPort: m.ExternalPort, Protocol: m.Protocol}
}

// keyArgs are the arguments that name an entry.
type keyArgs struct {
	NewRemoteHost   string
	NewExternalPort string
	NewProtocol     string
}

// args checks the key and writes it. Port 0 means everything on the wire.
func (k PortMappingKey) args() (keyArgs, error) {
	protocol, err := protocolName(k.Protocol)
	if err != nil {
		return keyArgs{}, err
	}
	if k.ExternalPort == 0 {
		return keyArgs{}, fmt.Errorf("%w: external port 0", backends.ErrInvalid)
	}
	return keyArgs{NewRemoteHost: formatHost(k.Remote), NewExternalPort: formatPort(k.ExternalPort), NewProtocol: protocol}, nil
}

// entryArgs are the arguments that tell an entry, in the order of
// AddPortMapping and GetGenericPortMappingEntry.
type entryArgs struct {
	NewRemoteHost             string
	NewExternalPort           string
	NewProtocol               string
	NewInternalPort           string
	NewInternalClient         string
	NewEnabled                string
	NewPortMappingDescription string
	NewLeaseDuration          string
}

// args checks the entry and writes it.
func (m PortMapping) args() (*entryArgs, error) {
	key, err := m.Key().args()
	if err != nil {
		return nil, err
	}
	lease, err := leaseSeconds(m.Lease)
	if err != nil {
		return nil, err
	}
	switch client := m.Internal.Addr().Unmap(); {
	case m.Internal.Port() == 0:
		return nil, fmt.Errorf("%w: internal port 0", backends.ErrInvalid)
	case !client.IsValid() || client.IsUnspecified():
		return nil, fmt.Errorf("%w: no internal address", backends.ErrInvalid)
	case !client.Is4():
		return nil, fmt.Errorf("%w: a port mapping is for IPv4, %v is not", backends.ErrUnsupported, client)
	}
	return &entryArgs{
		NewRemoteHost: key.NewRemoteHost, NewExternalPort: key.NewExternalPort, NewProtocol: key.NewProtocol,
		NewInternalPort:           formatPort(m.Internal.Port()),
		NewInternalClient:         formatHost(m.Internal.Addr()),
		NewEnabled:                formatBool(m.Enabled),
		NewPortMappingDescription: wireDescription(m.Description),
		NewLeaseDuration:          lease,
	}, nil
}

// parse reads the entry. Its error wraps backends.ErrMalformed.
func (a *entryArgs) parse() (PortMapping, error) {
	protocol, err := parseProtocol(a.NewProtocol)
	if err != nil {
		return PortMapping{}, err
	}
	external, err := parsePort("NewExternalPort", a.NewExternalPort)
	if err != nil {
		return PortMapping{}, err
	}
	internal, err := parsePort("NewInternalPort", a.NewInternalPort)
	if err != nil {
		return PortMapping{}, err
	}
	return PortMapping{
		Remote: parseAddr(a.NewRemoteHost), ExternalPort: external, Protocol: protocol,
		Internal:    netip.AddrPortFrom(parseAddr(a.NewInternalClient), internal),
		Enabled:     parseBool(a.NewEnabled),
		Description: printable(a.NewPortMappingDescription),
		Lease:       parseLease(a.NewLeaseDuration),
	}, nil
}

// PortMapping asks for one entry of the table (GetSpecificPortMappingEntry).
// Where there is none, the fault wraps backends.ErrInvalid with most gateways;
// some have other codes for it, and some answer for none.
func (c *Client) PortMapping(ctx context.Context, key PortMappingKey) (PortMapping, error) {
	const action = "GetSpecificPortMappingEntry"
	in, err := key.args()
	if err != nil {
		return PortMapping{}, fmt.Errorf("upnp: %s: %w", action, err)
	}
	var out struct {
		NewInternalPort           string
		NewInternalClient         string
		NewEnabled                string
		NewPortMappingDescription string
		NewLeaseDuration          string
	}
	if err := c.perform(ctx, action, &in, &out); err != nil {
		return PortMapping{}, err
	}
	m, err := (&entryArgs{
		NewRemoteHost: in.NewRemoteHost, NewExternalPort: in.NewExternalPort, NewProtocol: in.NewProtocol,
		NewInternalPort: out.NewInternalPort, NewInternalClient: out.NewInternalClient, NewEnabled: out.NewEnabled,
		NewPortMappingDescription: out.NewPortMappingDescription, NewLeaseDuration: out.NewLeaseDuration,
	}).parse()
	if err != nil {
		return PortMapping{}, fmt.Errorf("upnp: %s: %w", action, err)
	}
	return m, nil
}

// PortMappingAt asks for the entry at an index of the table, from 0
// (GetGenericPortMappingEntry). Past the end the fault wraps
// backends.ErrInvalid with most gateways (713); some have 402, 501, 714 or 899
// for it, and some never end. Indexes move when the table changes.
func (c *Client) PortMappingAt(ctx context.Context, index int) (PortMapping, error) {
	const action = "GetGenericPortMappingEntry"
	if index < 0 || index > 65535 {
		return PortMapping{}, fmt.Errorf("upnp: %s: %w: index %d", action, backends.ErrInvalid, index)
	}
	in := struct{ NewPortMappingIndex string }{strconv.Itoa(index)}
	var out entryArgs
	if err := c.perform(ctx, action, &in, &out); err != nil {
		return PortMapping{}, err
	}
	m, err := out.parse()
	if err != nil {
		return PortMapping{}, fmt.Errorf("upnp: %s: %w", action, err)
	}
	return m, nil
}
