// Package cli is the command line of goforward, apart from the process around
// it: [Run] is called by main and by tests alike.
//
// # Output
//
// What was asked for goes to stdout, so that it can be piped: an endpoint, an
// address, a table, or with --json one object on each line. Everything else is
// talk, and goes to stderr. Text that may come from the network or from another
// program is printed with its control characters escaped.
package cli
