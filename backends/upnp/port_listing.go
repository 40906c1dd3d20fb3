package upnp

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/natforward/goforward/backends"
)

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
