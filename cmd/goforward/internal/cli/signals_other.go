//go:build !unix && !windows

package cli

import "os"

// notifyHangup does nothing: these systems lack SIGHUP or SIGPIPE.
func notifyHangup(chan<- os.Signal) {}

// signalNumber returns the number of SIGINT: these systems have no numbers.
func signalNumber(os.Signal) int { return 2 }
