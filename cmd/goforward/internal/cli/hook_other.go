//go:build !unix

package cli

import "os/exec"

// setProcessGroup does nothing: these systems kill only the command itself when its
// context ends.
func setProcessGroup(*exec.Cmd) {}
