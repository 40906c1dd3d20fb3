// Package hostile attacks the library as a host of the LAN, or a gateway that
// is not what it should be, could.
//
// Its tests come in pairs: first a client of a few lines, which reads the
// packets as they seem to be meant, is taken in; then the library is not, and
// what it was asked to do is done all the same, within its bounds and without a
// word to anybody but the gateway. SECURITY.md lists the attacks.
//
// The package itself has what the fuzz targets of the clients share: a
// [Mutator] of true answers, and [Check], which says what no mapping may be
// after any of them.
package attack
