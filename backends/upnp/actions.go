package upnp

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lazyregexp"
	"github.com/natforward/goforward/internal/lenient"
)

// ExternalAddr requests the external address of the gateway
// (GetExternalIPAddress). The result is the zero Addr if the gateway is not
// connected, does not report its address, or reports an address that no gateway
// can have.
func (c *Client) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	return call(ctx, c, "GetExternalIPAddress", nil, nil, func(out *lenient.Element) (netip.Addr, error) {
		external := backends.HostAddr(parseAddr(out.Value("NewExternalIPAddress")))
		c.lastExternal.Store(&externalReply{external, time.Now()})
		return external, nil
	})
}

// Status is the state of a gateway's connection to the internet.
type Status struct {
	// Connection is the name of the state: Connected, Disconnected, Connecting,
	// Unconfigured and others.
	Connection string
	// LastError is the reason of the last connection failure: ERROR_NONE or
	// another name, which may be vendor-specific.
	LastError string
	// Uptime is how long the connection has been up. It is 0 if the gateway
	// does not report it.
	Uptime time.Duration
}

// Connected reports whether the connection is up according to the gateway.
func (s Status) Connected() bool {
	return strings.EqualFold(s.Connection, "Connected") || strings.EqualFold(s.Connection, "Up")
}

// Status requests the state of the connection (GetStatusInfo).
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call(ctx, c, "GetStatusInfo", nil, nil, func(out *lenient.Element) (Status, error) {
		return Status{
			Connection: printable(out.Value("NewConnectionStatus")),
			LastError:  printable(out.Value("NewLastConnectionError")),
			Uptime:     parseLease(out.Value("NewUptime")),
		}, nil
	})
}

// PortMapping is an entry of a gateway's table.
type PortMapping struct {
	// Remote is the only remote host that may use the mapping. The zero Addr
	// means any host.
	Remote       netip.Addr
	ExternalPort uint16
	Protocol     backends.Protocol
	// Internal is the address and port to which the port is forwarded. In a
	// response, the address is the zero Addr if the gateway does not report an IP
	// address.
	Internal netip.AddrPort
	Enabled  bool
	// Description is reduced to at most 63 bytes of plain ASCII in a request,
	// and is never blank there. In a response it is printable and has at most
	// 256 bytes.
	Description string
	// Lease is sent in seconds, rounded up. 0 and backends.Forever mean a
	// permanent mapping in IGD version 1, and the longest lease of the gateway
	// in version 2. In a response, 0 means that the mapping is permanent or
	// that the lease is not reported. Many gateways report wrong leases.
	Lease time.Duration
}

// PortMappingKey identifies an entry of a gateway's table.
type PortMappingKey struct {
	// Remote is the only remote host that may use the mapping. The zero Addr
	// means any host.
	Remote       netip.Addr
	ExternalPort uint16
	Protocol     backends.Protocol
}

// Key returns the key of the entry.
func (m PortMapping) Key() PortMappingKey {
	return PortMappingKey{Remote: m.Remote, ExternalPort: m.ExternalPort, Protocol: m.Protocol}
}

// keyArgs are the arguments that identify an entry.
type keyArgs struct{ NewRemoteHost, NewExternalPort, NewProtocol string }

// args validates the key and returns its arguments. It rejects port 0, because
// port 0 in a request means all ports.
func (k PortMappingKey) args() (keyArgs, error) {
	protocol, err := protocolName(k.Protocol)
	if err == nil && k.ExternalPort == 0 {
		err = fmt.Errorf("%w: external port 0", backends.ErrInvalid)
	}
	return keyArgs{NewRemoteHost: formatHost(k.Remote), NewExternalPort: formatPort(k.ExternalPort), NewProtocol: protocol}, err
}

// entryArgs are the arguments of an entry, in the order of AddPortMapping.
type entryArgs struct {
	NewRemoteHost, NewExternalPort, NewProtocol, NewInternalPort, NewInternalClient, NewEnabled,
	NewPortMappingDescription, NewLeaseDuration string
}

// args validates the entry and returns its arguments.
func (m PortMapping) args() (entryArgs, error) {
	key, err := m.Key().args()
	lease, leaseErr := leaseSeconds(m.Lease)
	return entryArgs{
		key.NewRemoteHost, key.NewExternalPort, key.NewProtocol, formatPort(m.Internal.Port()), formatHost(m.Internal.Addr()),
		map[bool]string{true: "1", false: "0"}[m.Enabled], wireDescription(m.Description), lease,
	}, cmp.Or(err, leaseErr, checkInternal(m.Internal, true))
}

// checkInternal returns an error for an internal address that a port mapping (is4)
// or a pinhole cannot have.
func checkInternal(internal netip.AddrPort, is4 bool) error {
	switch client := internal.Addr().Unmap(); {
	case internal.Port() == 0:
		return fmt.Errorf("%w: internal port 0", backends.ErrInvalid)
	case !client.IsValid() || client.IsUnspecified():
		return fmt.Errorf("%w: no internal address", backends.ErrInvalid)
	case is4 && !client.Is4():
		return fmt.Errorf("%w: a port mapping needs an IPv4 address, not %v", backends.ErrUnsupported, client)
	case !is4 && client.Is4():
		return fmt.Errorf("%w: a pinhole needs an IPv6 address, not %v", backends.ErrUnsupported, client)
	}
	return nil
}

// parseEntry returns the entry in the arguments of a response or in a listing.
// Its error wraps backends.ErrMalformed.
func parseEntry(e *lenient.Element) (PortMapping, error) {
	protocol, protocolErr := parseProtocol(e.Value("NewProtocol"))
	external, externalErr := parsePort(e, "NewExternalPort")
	m, err := PortMappingKey{parseAddr(e.Value("NewRemoteHost")), external, protocol}.parseEntry(e)
	return m, cmp.Or(protocolErr, externalErr, err)
}

// parseEntry returns the entry with this key. An entry that does not report
// whether it is enabled is enabled.
func (k PortMappingKey) parseEntry(e *lenient.Element) (PortMapping, error) {
	internal, err := parsePort(e, "NewInternalPort")
	return PortMapping{
		Remote: k.Remote, ExternalPort: k.ExternalPort, Protocol: k.Protocol,
		Internal:    netip.AddrPortFrom(parseAddr(e.Value("NewInternalClient")), internal),
		Enabled:     parseBool(e.Value("NewEnabled"), true),
		Description: printable(e.Value("NewDescription", "NewPortMappingDescription")),
		Lease:       parseLease(e.Value("NewLeaseTime", "NewLeaseDuration")),
	}, err
}

// PortMapping requests one entry of the table (GetSpecificPortMappingEntry). If
// there is no such entry, most gateways respond with a fault that wraps
// backends.ErrInvalid. Some gateways use other codes, and some report success.
func (c *Client) PortMapping(ctx context.Context, key PortMappingKey) (PortMapping, error) {
	in, err := key.args()
	key.Remote = parseAddr(in.NewRemoteHost)
	return call(ctx, c, "GetSpecificPortMappingEntry", in, err, key.parseEntry)
}

// PortMappingAt requests the entry at an index of the table, which starts at 0
// (GetGenericPortMappingEntry). If the index is after the end of the table, most
// gateways respond with a fault that wraps backends.ErrInvalid (713). Some
// gateways use 402, 501, 714 or 899, and some tables never end. The indexes of
// entries change when the table changes.
func (c *Client) PortMappingAt(ctx context.Context, index int) (PortMapping, error) {
	var err error
	if index < 0 || index > 65535 {
		err = fmt.Errorf("%w: index %d", backends.ErrInvalid, index)
	}
	in := struct{ NewPortMappingIndex string }{strconv.Itoa(index)}
	return call(ctx, c, "GetGenericPortMappingEntry", in, err, parseEntry)
}

// AddPortMapping adds an entry, or refreshes an entry of the same host. If
// another host has the port, the gateway reports a conflict (718). Some
// gateways also report a conflict for an entry of the same host.
func (c *Client) AddPortMapping(ctx context.Context, m PortMapping) error {
	in, err := m.args()
	_, err = call(ctx, c, "AddPortMapping", in, err, noOutput)
	return err
}

// AddAnyPortMapping adds an entry and returns its external port. If the
// requested port is in use, the gateway chooses another one. The action exists
// only in WANIPConnection:2.
func (c *Client) AddAnyPortMapping(ctx context.Context, m PortMapping) (uint16, error) {
	in, err := m.args()
	return call(ctx, c, "AddAnyPortMapping", in, err, func(out *lenient.Element) (uint16, error) {
		port, err := parsePort(out, "NewReservedPort")
		if err == nil && port == 0 {
			err = malformed("the response reports external port 0")
		}
		return port, err
	})
}

// DeletePortMapping deletes an entry. Some gateways let a host delete the
// entries of other hosts. If there is no such entry, the fault wraps
// backends.ErrInvalid (714).
func (c *Client) DeletePortMapping(ctx context.Context, key PortMappingKey) error {
	in, err := key.args()
	_, err = call(ctx, c, "DeletePortMapping", in, err, noOutput)
	return err
}

const listAction = "GetListOfPortMappings"

// maxWindow is the maximum number of ports in one listing. A common daemon
// crashes if a listing has more than 128 entries.
const maxWindow = 128

// maxListElements is the maximum number of elements in a listing: twice 128
// entries of 9 elements each, and a reserve.
const maxListElements = 2560

// PortMappings requests the entries with external ports from first to last, at
// most 128 ports (GetListOfPortMappings of WANIPConnection:2). The entries are
// in the order of the gateway. An empty list is not an error. If the range is
// empty or too large, the error wraps backends.ErrInvalid. Invalid entries are
// ignored.
func (c *Client) PortMappings(ctx context.Context, p backends.Protocol, first, last uint16) ([]PortMapping, error) {
	size := int(last) - int(first) + 1
	if _, err := protocolName(p); err == nil && (first == 0 || size < 1 || size > maxWindow) {
		return nil, fmt.Errorf("upnp: %s: %w: ports %d to %d: want a range of 1 to %d ports", listAction, backends.ErrInvalid, first, last, maxWindow)
	}
	return c.listPorts(ctx, p, first, last, size)
}

// listPorts requests at most limit entries with external ports from first to last.
func (c *Client) listPorts(ctx context.Context, p backends.Protocol, first, last uint16, limit int) ([]PortMapping, error) {
	protocol, err := protocolName(p)
	// NewManage requests the entries of other hosts too, if the gateway permits
	// it.
	in := struct{ NewStartPort, NewEndPort, NewProtocol, NewManage, NewNumberOfPorts string }{
		formatPort(first), formatPort(last), protocol, "1", strconv.Itoa(limit),
	}
	list, err := call(ctx, c, listAction, in, err, parseListing)
	if isFault(err, PortMappingNotFound) {
		return nil, nil
	}
	return list, err
}

// parseListing returns the entries at any depth of a listing. Some devices do not
// escape the listing.
func parseListing(out *lenient.Element) (list []PortMapping, err error) {
	entries := out.All("PortMappingEntry")
	if len(entries) == 0 {
		listing, err := lenient.Parse([]byte(out.Value("NewPortListing")), maxListElements)
		if err != nil {
			return nil, err
		}
		entries = listing.All("PortMappingEntry")
	}
	for _, e := range entries[:min(len(entries), 2*maxWindow)] {
		if m, err := parseEntry(e); err == nil && e.Closed {
			list = append(list, m)
		}
	}
	return list, nil
}

// The maximum lengths of texts: the description length that all devices accept
// in requests, and the limit for texts in responses.
const (
	maxWireDescription = 63
	maxText            = 256
)

// wireDescription returns the description that is sent instead of s. Some
// devices reject descriptions that are blank, contain quotes or markup, or have
// more than 63 bytes. Others copy them into their own XML without escaping.
func wireDescription(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("\"'`<>&\\", r) {
			return '_'
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	return cmp.Or(strings.TrimSpace(s[:min(len(s), maxWireDescription)]), "goforward")
}

// printable returns a text of the device in a form that is safe to display: one
// line of at most 256 bytes, with question marks instead of unprintable
// characters.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

// protocolName returns the name of a protocol in the services that map ports.
func protocolName(p backends.Protocol) (string, error) {
	switch p {
	case backends.TCP, backends.UDP:
		return strings.ToUpper(p.String()), nil
	case 0:
		return "", fmt.Errorf("%w: no protocol", backends.ErrInvalid)
	}
	return "", fmt.Errorf("%w: UPnP maps TCP and UDP, not %v", backends.ErrUnsupported, p)
}

func parseProtocol(s string) (backends.Protocol, error) {
	p, err := backends.ParseProtocol(s)
	if err != nil || p != backends.TCP && p != backends.UDP {
		return 0, malformed("protocol %.32q", s)
	}
	return p, nil
}

// leaseSeconds returns a lease in seconds, rounded up. Forever is 0.
func leaseSeconds(d time.Duration) (string, error) {
	if d < 0 {
		return "", fmt.Errorf("%w: negative lease %v", backends.ErrInvalid, d)
	}
	if d == backends.Forever {
		d = 0
	}
	return strconv.FormatInt(min(int64(roundUpToSecond(d)/time.Second), math.MaxUint32), 10), nil
}

// parseLease parses a number of seconds. It returns 0 for any other text.
func parseLease(s string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// parsePort parses the port in an argument.
func parsePort(e *lenient.Element, name string) (uint16, error) {
	n, err := strconv.ParseUint(e.Value(name), 10, 16)
	if err != nil {
		return 0, malformed("%s %.32q", name, e.Value(name))
	}
	return uint16(n), nil
}

func formatPort(p uint16) string { return strconv.Itoa(int(p)) }

// leadingZeros matches the zeros before the digits of a number, with which some
// devices write addresses.
var leadingZeros = lazyregexp.New(`\b0+(\d)`)

// parseAddr parses an address. It returns the zero Addr for any other text, for
// the unspecified address, and for an address with a zone: a zone can contain
// any text, and the text would be printed with the address.
func parseAddr(s string) netip.Addr {
	s = strings.TrimSpace(s)
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(leadingZeros().ReplaceAllString(s, "$1"))
	}
	if err != nil || a.IsUnspecified() || a.Zone() != "" {
		return netip.Addr{}
	}
	return a.Unmap()
}

// formatHost formats an address. The zero Addr is the wildcard and becomes an
// empty string, because some devices misinterpret 0.0.0.0.
func formatHost(a netip.Addr) string {
	if !a.IsValid() || a.IsUnspecified() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// parseBool parses the forms that devices use for true and false. It returns
// other for any other text.
func parseBool(s string, other bool) bool {
	s = strings.ToLower(strings.TrimSpace(s))
	return slices.Contains([]string{"1", "true", "yes"}, s) || other && !slices.Contains([]string{"0", "false", "no"}, s)
}
