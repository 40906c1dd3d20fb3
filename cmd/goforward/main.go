// Goforward asks the gateway to forward ports to this host: see goforward --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/natforward/goforward/internal/cli"
)

func main() {
	ctx, interrupt := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	// A reader that goes away must not leave a mapping behind: the write fails
	// instead of ending the process. To ignore the signal would have the commands
	// of --exec ignore it too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		<-signals
		interrupt()
		<-signals // somebody does not want to wait for the gateway
		os.Exit(1)
	}()
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
