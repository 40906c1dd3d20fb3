package upnp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
)

// ExternalAddr asks for the gateway's external address
// (GetExternalIPAddress). It is the zero Addr where the gateway names none:
// not connected, or it will not say, or says what no gateway can have.
func (c *Client) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	var out struct{ NewExternalIPAddress string }
	if err := c.perform(ctx, "GetExternalIPAddress", nil, &out); err != nil {
		return netip.Addr{}, err
	}
	return backends.HostAddr(parseAddr(out.NewExternalIPAddress)), nil
}

// Status is the state of a gateway's connection to the internet.
type Status struct {
	// Connection is the state's name: Connected, Disconnected, Connecting,
	// Unconfigured and others.
	Connection string
	// LastError is why the connection failed last, ERROR_NONE or the vendor's.
	LastError string
	// Uptime is how long the connection stands; 0 where the gateway will not say.
	Uptime time.Duration
}

// Connected reports whether the connection stands, as far as the gateway knows.
func (s Status) Connected() bool {
	return strings.EqualFold(s.Connection, "Connected") || strings.EqualFold(s.Connection, "Up")
}

// Status asks for the state of the connection (GetStatusInfo).
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out struct {
		NewConnectionStatus    string
		NewLastConnectionError string
		NewUptime              string
	}
	if err := c.perform(ctx, "GetStatusInfo", nil, &out); err != nil {
		return Status{}, err
	}
	return Status{
		Connection: printable(out.NewConnectionStatus),
		LastError:  printable(out.NewLastConnectionError),
		Uptime:     parseLease(out.NewUptime),
	}, nil
}

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

// AddPortMapping makes an entry, or refreshes one of the same host. An entry
// of another host conflicts (718), and with some gateways one of the same host
// does.
func (c *Client) AddPortMapping(ctx context.Context, m PortMapping) error {
	const action = "AddPortMapping"
	in, err := m.args()
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	return c.perform(ctx, action, in, nil)
}

// AddAnyPortMapping makes an entry and returns its external port, which is
// another than the wish where that is taken. WANIPConnection:2 has it.
func (c *Client) AddAnyPortMapping(ctx context.Context, m PortMapping) (uint16, error) {
	const action = "AddAnyPortMapping"
	in, err := m.args()
	if err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	var out struct{ NewReservedPort string }
	if err := c.perform(ctx, action, in, &out); err != nil {
		return 0, err
	}
	port, err := parsePort("NewReservedPort", out.NewReservedPort)
	if err == nil && port == 0 {
		err = malformed("port 0 reserved")
	}
	if err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	return port, nil
}

// DeletePortMapping takes an entry away, whoever made it, where the gateway
// allows. Where there is none, the fault wraps backends.ErrInvalid (714).
func (c *Client) DeletePortMapping(ctx context.Context, key PortMappingKey) error {
	const action = "DeletePortMapping"
	in, err := key.args()
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	return c.perform(ctx, action, &in, nil)
}

const listAction = "GetListOfPortMappings"

// maxWindow bounds the ports of one listing: a common daemon crashes where it
// has more than 128 entries to tell.
const maxWindow = 128

// maxListElements bounds a listing's elements: 128 entries of 9, twice over.
const maxListElements = 2560

// PortMappings asks for the entries whose external port is from first to last,
// at most 128 ports in all (GetListOfPortMappings of WANIPConnection:2), in
// the gateway's order. None is no error. A window of more ports or of none
// wraps backends.ErrInvalid. Entries that make no sense are left out.
func (c *Client) PortMappings(ctx context.Context, p backends.Protocol, first, last uint16) ([]PortMapping, error) {
	protocol, err := protocolName(p)
	size := int(last) - int(first) + 1
	if err == nil && (first == 0 || size < 1 || size > maxWindow) {
		err = fmt.Errorf("%w: window of ports %d to %d: want 1 to %d of them", backends.ErrInvalid, first, last, maxWindow)
	}
	if err != nil {
		return nil, fmt.Errorf("upnp: %s: %w", listAction, err)
	}
	// NewManage asks for other hosts' entries too, where the gateway allows.
	in := struct{ NewStartPort, NewEndPort, NewProtocol, NewManage, NewNumberOfPorts string }{
		formatPort(first), formatPort(last), protocol, "1", strconv.Itoa(size),
	}
	var out struct{ NewPortListing string }
	if err := c.perform(ctx, listAction, &in, &out); err != nil {
		var f *Fault
		if errors.As(err, &f) && f.Code == PortMappingNotFound {
			return nil, nil
		}
		return nil, err
	}
	list, err := parsePortListing([]byte(out.NewPortListing))
	if err != nil {
		return nil, fmt.Errorf("upnp: %s: %w", listAction, err)
	}
	return list, nil
}

// parsePortListing reads the document within a listing: entries anywhere in
// it, under the names of the standard and of GetGenericPortMappingEntry.
func parsePortListing(b []byte) ([]PortMapping, error) {
	document, err := parseXML(b, maxListElements)
	if err != nil {
		return nil, err
	}
	var list []PortMapping
	document.visit("PortMappingEntry", func(e *element) {
		a := entryArgs{
			NewRemoteHost: e.value("NewRemoteHost"), NewExternalPort: e.value("NewExternalPort"),
			NewProtocol: e.value("NewProtocol"), NewInternalPort: e.value("NewInternalPort"),
			NewInternalClient: e.value("NewInternalClient"), NewEnabled: e.value("NewEnabled"),
			NewPortMappingDescription: e.value("NewDescription", "NewPortMappingDescription"),
			NewLeaseDuration:          e.value("NewLeaseTime", "NewLeaseDuration"),
		}
		if m, err := a.parse(); err == nil && e.closed && len(list) < 2*maxWindow {
			list = append(list, m)
		}
	})
	return list, nil
}

// The longest descriptions: what all devices take, and what we read.
const (
	maxWireDescription = 63
	maxText            = 256
)

// wireDescription is what devices are told in place of s: some refuse blank
// descriptions, quotes, markup, or more than 63 bytes, and some write them
// unescaped into their own XML.
func wireDescription(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune("\"'`<>&\\", r) {
			return '_'
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	s = strings.TrimSpace(s[:min(len(s), maxWireDescription)])
	if s == "" {
		return "goforward"
	}
	return s
}

// printable is a text of the device as it may be shown: one line, without
// control characters, of at most 256 bytes.
func printable(s string) string {
	s = strings.TrimSpace(s)
	var b strings.Builder
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			r = '?'
		}
		if b.Len()+len(string(r)) > maxText {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// protocolName is how the services that map ports call a protocol.
func protocolName(p backends.Protocol) (string, error) {
	switch p {
	case backends.TCP:
		return "TCP", nil
	case backends.UDP:
		return "UDP", nil
	case 0:
		return "", fmt.Errorf("%w: no protocol", backends.ErrInvalid)
	}
	return "", fmt.Errorf("%w: UPnP maps TCP and UDP, not %v", backends.ErrUnsupported, p)
}

func parseProtocol(s string) (backends.Protocol, error) {
	switch s = strings.TrimSpace(s); {
	case strings.EqualFold(s, "TCP"):
		return backends.TCP, nil
	case strings.EqualFold(s, "UDP"):
		return backends.UDP, nil
	}
	return 0, fmt.Errorf("%w: protocol %q", backends.ErrMalformed, clip(s))
}

// leaseSeconds is a lease in seconds, rounded up; Forever is 0.
func leaseSeconds(d time.Duration) (string, error) {
	if d < 0 {
		return "", fmt.Errorf("%w: negative lease %v", backends.ErrInvalid, d)
	}
	if d == backends.Forever {
		return "0", nil
	}
	s := d / time.Second
	if d%time.Second != 0 {
		s++
	}
	return strconv.FormatInt(min(int64(s), math.MaxUint32), 10), nil
}

// parseLease reads seconds. What is not a number was not told.
func parseLease(s string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

func parsePort(name, s string) (uint16, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%w: %s %q", backends.ErrMalformed, name, clip(s))
	}
	return uint16(n), nil
}

func formatPort(p uint16) string { return strconv.Itoa(int(p)) }

// parseAddr reads an address; what is none, or names no host, is the zero Addr,
// and so is one with a zone: that can be any text, and would get where addresses
// go.
func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.IsUnspecified() || a.Zone() != "" {
		return netip.Addr{}
	}
	return a.Unmap()
}

// formatHost writes an address; the zero Addr is the wildcard, an empty
// element: some devices misread 0.0.0.0.
func formatHost(a netip.Addr) string {
	if !a.IsValid() || a.IsUnspecified() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// parseBool reads what devices write for a boolean; anything else is false.
func parseBool(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "true", "yes":
		return true
	}
	return false
}

func formatBool(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// clip bounds what an error quotes of an answer.
func clip(s string) string { return s[:min(len(s), 32)] }
