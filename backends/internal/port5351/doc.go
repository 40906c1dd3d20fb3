// Package port5351 is what NAT-PMP (RFC 6886) and PCP (RFC 6887) share of one
// gateway: they live on one port, are told apart by a version byte, want one
// request at a time, and announce restarts to one multicast group.
//
// A [Conn] is the way to one gateway. Everybody in the process who opens the
// same way shares its socket; everybody who talks to the same gateway shares
// its queue. The package knows no message of either protocol beyond what
// distinguishes them: an [Transaction] brings its request and its own judgement of
// what answers it.
package port5351
