// Package proof proves package gethnat with the real go-ethereum: its servers run
// on both sides of a lab's router and connect to each other as peers. There are
// only tests here, in a module of their own, so that users of gethnat depend on no
// version of go-ethereum.
package proof
