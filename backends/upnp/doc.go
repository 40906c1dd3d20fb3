// Package upnp supports UPnP Internet Gateway Devices, versions 1 and 2. It
// fetches the description of a device, performs the actions of its services
// that map ports (WANIPConnection, WANPPPConnection) or open an IPv6 firewall
// (WANIPv6FirewallControl), and contains the backend that package forward uses.
//
// Most programs use package forward and never import this package. To use one device
// if you know the URL of its description:
//
//	d, err := upnp.Describe(ctx, "http://192.168.1.1:5000/rootDesc.xml", upnp.ClientConfig{})
//	c, err := upnp.NewClient(d.Services[0], upnp.ClientConfig{}) // one of its services
//	err = c.AddPortMapping(ctx, upnp.PortMapping{…})             // an action of that service
//
// # Requests and responses
//
// This package writes and reads the HTTP and SOAP messages. Requests have one
// fixed form that strict devices accept, the one of package goupnp. Responses are read leniently: malformed HTTP,
// XML in unexpected charsets, prefixes, namespaces and letter case,
// faults with status 200, and successes with status 500. The size and depth of
// a response, and the time for it, are limited. The package resolves no names,
// uses no proxy, follows no redirects, and fetches no service description
// (SCPD). It sends requests to a device only at the address at which the device
// was found.
//
// # Errors
//
// If a device refuses an action, the error is a *[Fault] with the device's code
// and text. An HTTP error status without a fault is an *[HTTPError]. Both wrap
// the errors of package backends, for errors.Is. If a connection is refused or
// reset, or if there is no response, the error wraps backends.ErrNoReply and
// its cause. [Moved] reports whether an error makes a new search useful: devices
// change their port when they restart.
//
// The directory examples/upnpclient of the repository has a complete program
// that uses only this client.
package upnp
