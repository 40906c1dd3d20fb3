// Package upnp speaks to UPnP Internet Gateway Devices, versions 1 and 2: the
// description of a device, the actions of its services that map ports
// (WANIPConnection, WANPPPConnection) or open an IPv6 firewall
// (WANIPv6FirewallControl), and the backend that package forward uses.
//
// Most programs never import it: use package forward.
// For one device whose description you know: d, err := upnp.Describe(ctx, "http://192.168.1.1:5000/rootDesc.xml", upnp.ClientConfig{}).
// For the actions of one of its services: c, err := upnp.NewClient(d.Services[0], upnp.ClientConfig{}).
//
// # What is spoken
//
// Device types, and SOAP as UPnP uses it, are goupnp's. The bytes below are
// this package's: requests are written in one fixed shape that picky devices
// take, and answers are read leniently (HTTP that is not quite HTTP, XML in
// other charsets, with other prefixes, namespaces and case, faults with status
// 200 and successes with 500), bounded in size, depth and time. No name is
// resolved, no proxy asked, no redirect followed, no service description
// (SCPD) fetched: a device is talked to at the address that it was found at.
//
// # Errors
//
// What a device refuses is a *[Fault] with its code and text; an HTTP status
// without a fault is an *[HTTPError]. Both wrap the errors of package backends,
// for errors.Is. A connection that is refused, reset or silent wraps
// backends.ErrNoReply and its cause. [Moved] tells which errors are worth a new
// search: devices change their port when they restart.
//
// A whole program with this client alone is examples/upnpclient of the repository.
package upnp
