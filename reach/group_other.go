//go:build !unix

package reach

import "os/exec"

// setGroup does nothing: this system has no process groups.
func setGroup(*exec.Cmd) {}

// killGroup does nothing.
func killGroup(*exec.Cmd) {}
