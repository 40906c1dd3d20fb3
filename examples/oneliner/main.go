// One call: an open port of the router leads to a free one here, and the first
// visitor from the internet is greeted.
//
//	go run ./examples/oneliner
package main

import (
	"fmt"
	"log"
	"net"

	"github.com/natforward/goforward/forward"
)

func main() {
	m, err := forward.Enable()
	if err != nil {
		log.Fatal(err) // what was tried, what each said, and what to do about it
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(m.Internal().Port())})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("reachable at", m.External())
	visitor, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	_, _ = fmt.Fprintln(visitor, "hello from behind the router")
	_ = visitor.Close()
	if err := forward.Disable(); err != nil {
		log.Fatal(err)
	}
	_ = ln.Close()
}
