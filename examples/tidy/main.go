// Lists the mappings of all hosts on the router, if it can list them (UPnP), and deletes the
// mappings with a given description.
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
			log.Println(err) // DisableAll has deleted the other mappings
		}
		fmt.Printf("deleted %d of %q\n", n, description)
	}
	entries, err := forward.Mappings()
	if err != nil {
		log.Println(err) // entries contains the mappings that were read before the error
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
