// Package gateway owns the mappings that gateways grant. There is one Owner per gateway and
// process. Only code on the owner's Loop changes the state of that gateway: the available
// backends, the granted entries, the requests in flight and the pending deletions.
//
// A Forwarder joins an owner as a Client and attaches a Handle for each mapping. The handle
// holds an entry for each member of its Spec. Handles with matching specs share an entry,
// even if they belong to different Forwarders. The owner renews entries and requests them
// again after a restart of the gateway. It publishes the state of each handle as a Status. It
// deletes an entry when its last holder releases it.
//
// Flows make the requests. A flow is a goroutine that exists only while it has requests to
// make. Between its requests it runs on the loop. Requests use the owner's context: if a
// call is cancelled, the caller only stops waiting, and the owner deletes what the gateway grants
// afterwards.
//
// The owner calls no user code. It notifies its clients through a Sink, which never blocks.
//
// Other programs of the same user can hold the same mapping. Package holders counts them, and
// an entry is deleted only by the last one.
//
// The files: owner.go starts and stops owners, and client.go is the interface to Forwarders.
// loop.go has the loop and the flows. handle.go has the mappings that a Forwarder requests,
// and entry.go the mappings that a gateway grants. create.go makes first requests, port.go
// selects external ports, renew.go handles renewals and restarts, check.go asks gateways
// whether they still have the mappings, and delete.go handles deletions. restore.go takes over
// mappings of an earlier run and deletions of ended owners. backend.go has the protocols, and
// probe.go finds out which of them a gateway supports: by rounds of requests (round.go), which
// begin with what is known from earlier ones (memory.go).
package gateway
