// One call maps a port of the router to a free local port. The program then greets the
// first client from the internet.
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
		log.Fatal(err) // the error contains each attempt, its error, and advice
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(m.Internal().Port())})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("reachable at", m.External())
	conn, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	_, _ = fmt.Fprintln(conn, "hello from behind the router")
	_ = conn.Close()
	if err := forward.Disable(); err != nil {
		log.Fatal(err)
	}
	_ = ln.Close()
}
