//go:build !unix && !windows

package main

import "os"

// outlive does nothing: these systems do not have both signals.
func outlive(chan<- os.Signal) {}
