// Lists what the router forwards, for whomever, where it tells (UPnP), and takes
// away what has a description that is given.
//
//	go run ./examples/tidy
//	go run ./examples/tidy "old game" libtorrent
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/natforward/goforward/forward"
)

func main() {
	for _, description := range os.Args[1:] {
		n, err := forward.DisableAll(forward.Foreign(), forward.Description(description))
		if err != nil {
			log.Println(err) // and the rest is taken away all the same
		}
		fmt.Printf("%d of %q taken away\n", n, description)
	}
	entries, err := forward.Mappings()
	if err != nil {
		log.Println(err) // and what was read until then is listed all the same
	}
	for _, e := range entries {
		remaining := "no end"
		if at := e.Mapping.Expires(); !at.IsZero() {
			remaining = time.Until(at).Round(time.Minute).String()
		}
		fmt.Printf("%v %v → %v %q %s\n", e.Mapping.Protocol, e.Mapping.External, e.Mapping.Internal, e.Mapping.Description, remaining)
	}
	if err := forward.Close(); err != nil {
		log.Fatal(err)
	}
}
