// Package gateway owns what gateways grant. There is one Owner per gateway and
// process, a goroutine that alone changes the state of that gateway: which of its
// backends answer, the entries that it granted, the requests in flight and the
// deletions that got no reply.
//
// A Forwarder joins the owner as a Client. It acquires an entry for each protocol of a
// mapping and gets a Hold. If several holds ask for the same, they share the entry. The
// owner renews entries, requests them again after a restart of the gateway, and tells
// each hold of every change by its client's Sink. It deletes an entry when the last
// hold is released.
//
// Requests run on goroutines of their own, which exist only while requests are in
// flight. They run under the owner's context: a caller that gives up stops waiting,
// and the owner deletes what the gateway granted meanwhile.
//
// The owner calls nothing of the user's. A client asks it by a request with a context;
// it answers, and publishes by a Sink that never blocks.
package gateway
