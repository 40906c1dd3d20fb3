//go:build unix || windows

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// outlive has the program take its mappings away when its terminal or the reader of its
// output goes away.
func outlive(signals chan<- os.Signal) {
	if !signal.Ignored(syscall.SIGHUP) { // as by nohup: the program is to outlive its terminal
		signal.Notify(signals, syscall.SIGHUP)
	}
	// A reader that goes away must not leave a mapping behind: the write fails
	// instead of ending the process. To ignore the signal would have the commands
	// of --exec ignore it too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
