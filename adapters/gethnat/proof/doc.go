// Package proof tests package gethnat with the real go-ethereum. Its servers run on both sides
// of a router in the lab, and connect to each other as peers. The package has only tests, in a
// separate module, so that users of gethnat depend on no version of go-ethereum.
package proof
