package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// Main runs the command line of this process, without the name of the program, and returns the
// exit code. A signal interrupts the command. A second one ends the process.
func Main(args []string) int {
	ctx, interrupt := context.WithCancelCause(context.Background())
	a := newApp(os.Stdout, os.Stderr)
	signal.Notify(a.signals.incoming, os.Interrupt, syscall.SIGTERM)
	notifyHangup(a.signals.incoming)
	go a.signals.handle(interrupt, func() { os.Exit(exitOther) })
	return a.run(ctx, args)
}

// secondSignalAfter is the time after the first signal in which further signals are
// ignored. One press of Ctrl-C can arrive as several signals: a wrapper such as
// timeout(1) signals its child, and then the process group of that child.
const secondSignalAfter = time.Second

// signalHandler handles the signals of the process.
type signalHandler struct {
	incoming chan os.Signal
	child    atomic.Pointer[chan<- os.Signal] // while run runs a command: receives the signals
}

func newSignalHandler() *signalHandler {
	return &signalHandler{incoming: make(chan os.Signal, 16)}
}

// handle calls interrupt at the first signal, and exit at the next signal that arrives at least
// a second later: the user does not want to wait for the gateway. Signals for the command of
// run do not count.
func (h *signalHandler) handle(interrupt func(error), exit func()) {
	interrupt(signalError{h.next()})
	time.Sleep(secondSignalAfter)
	for len(h.incoming) > 0 {
		<-h.incoming
	}
	h.next()
	exit()
}

// next returns the next signal that is not for the command of run.
func (h *signalHandler) next() os.Signal {
	for {
		s := <-h.incoming
		child := h.child.Load()
		switch {
		case child == nil && slices.Contains(childSignals, s): // it was for the command, which has ended
			continue
		case child == nil:
			return s
		}
		select {
		case *child <- s:
		default: // the command does not react to the signals before
		}
	}
}

// passTo passes all signals to a command instead, until stop is called.
func (h *signalHandler) passTo(child chan<- os.Signal) (stop func()) {
	signal.Notify(h.incoming, childSignals...)
	h.child.Store(&child)
	return func() { h.child.Store(nil) }
}

// signalError is the cause with which a signal ends the context of a command.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return fmt.Sprintf("signal: %v", e.Signal) }

// interruptCode returns the exit code of a command that was interrupted: 128 plus the number of
// the signal, as in shells.
func interruptCode(ctx context.Context) int {
	if cause := (signalError{}); errors.As(context.Cause(ctx), &cause) {
		return exitSignal + signalNumber(cause.Signal)
	}
	return exitOther
}
