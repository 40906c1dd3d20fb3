// Package gateway owns what gateways grant. There is one Owner per gateway and process.
// Its loop alone changes the state of that gateway: which backends answer, the entries
// that it granted, the requests in flight and the deletions that got no reply.
//
// A Forwarder joins the owner as a Client, and attaches a Handle for each mapping. The
// handle holds an entry for each protocol of its Spec. Handles that ask for the same share
// the entry, also those of different Forwarders. The owner renews entries, requests them
// again after a restart of the gateway, and publishes what each handle is as a Status. It
// deletes an entry when its last holder gives it up.
//
// Requests are made by flows. A flow is a goroutine that exists only while it has something
// to request. Between its requests it runs on the loop. Requests run under the owner's
// context: a caller that gives up stops waiting, and the owner deletes what the gateway
// grants after that.
//
// The owner calls nothing of the user's. It tells its clients by a Sink that never blocks.
//
// The files by subject: entry.go has the table of entries, handle.go what a Forwarder holds,
// loop.go the loop and the flows that make requests, create.go a first request, port.go the
// choice of external ports, renew.go renewals and restarts, delete.go deletions and restored
// mappings, backend.go the protocols, probe.go the search for a backend that replies, client.go
// the interface to Forwarders, and owner.go how owners start and stop.
package gateway
