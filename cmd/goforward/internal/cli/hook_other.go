//go:build !unix

package cli

import "os/exec"

// group leaves a command as it is: it alone is killed when its context ends.
func group(*exec.Cmd) {}
