// A web server for ./public that is reachable from the internet, until Ctrl-C.
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/natforward/goforward/forward"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := forward.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = ln.Close() }) // Serve returns when the listener is closed
	go func() { log.Println("reachable:", ln.Mapping().Wait(ctx) == nil, ln.External()) }()
	log.Println(http.Serve(ln, http.FileServerFS(os.DirFS("public"))))
}
