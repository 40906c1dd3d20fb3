//go:build !unix && !windows

package main

import "os"

// notifyHangup does nothing: these systems lack SIGHUP or SIGPIPE.
func notifyHangup(chan<- os.Signal) {}
