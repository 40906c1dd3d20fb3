// Goforward makes the gateway forward ports to this host: see goforward --help.
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
	notifyHangup(signals)
	go handleSignals(signals, interrupt, func() { os.Exit(1) })
	os.Exit(cli.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// secondSignalAfter is the time after the first signal in which further signals are
// ignored. One press of Ctrl-C can arrive as several signals: a wrapper such as
// timeout(1) signals its child, and then the process group of that child.
const secondSignalAfter = time.Second

// handleSignals calls interrupt at the first signal. It calls exit at a signal that arrives
// at least a second later: the user does not want to wait for the gateway. The channel must
// have a capacity of one.
func handleSignals(signals <-chan os.Signal, interrupt, exit func()) {
	<-signals
	interrupt()
	time.Sleep(secondSignalAfter)
	select {
	case <-signals:
	default:
	}
	<-signals
	exit()
}
