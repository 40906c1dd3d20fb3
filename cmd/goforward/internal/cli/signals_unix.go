//go:build unix || windows

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyHangup makes the program delete its mappings if its terminal closes, or if the
// reader of its output exits.
func notifyHangup(signals chan<- os.Signal) {
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it, so that the program survives its terminal
		signal.Notify(signals, syscall.SIGHUP)
	}
	// If the reader of the output exits, the next write must fail instead of ending the
	// process: the mapping is still to be deleted. The signal is not ignored, because the
	// commands of --exec would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}

// signalNumber returns the number of a signal.
func signalNumber(s os.Signal) int {
	n, _ := s.(syscall.Signal) // signals are of this type on these systems
	return int(n)
}
