// Goforward asks the gateway to forward ports to this host: see goforward --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/natforward/goforward/cmd/goforward/internal/cli"
)

func main() {
	ctx, interrupt := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	outlive(signals)
	go obey(signals, interrupt, func() { os.Exit(1) })
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// again is how long after the first signal another one counts. One press of Ctrl-C
// can come as several: a wrapper such as timeout(1) signals its child, and then the
// process group that the child is in.
const again = time.Second

// obey interrupts at the first signal, and leaves at one that comes a second later
// or more: its sender does not want to wait for the gateway. The channel has a
// capacity of one.
func obey(signals <-chan os.Signal, interrupt, leave func()) {
	<-signals
	interrupt()
	time.Sleep(again)
	select {
	case <-signals:
	default:
	}
	<-signals
	leave()
}
