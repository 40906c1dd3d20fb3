//go:build !unix

package cli

import (
	"os"
	"os/exec"
)

// setProcessGroup does nothing: these systems kill only the command itself when its
// context ends.
func setProcessGroup(*exec.Cmd) {}

// childSignals are the signals that run passes to its command, besides those that end goforward.
var childSignals []os.Signal

// sentByTerminal reports whether the command has received a signal too: a console sends Ctrl-C
// to all its processes.
func sentByTerminal(s os.Signal) bool { return s == os.Interrupt }

// endsProcess reports whether a signal asks a process to end.
func endsProcess(os.Signal) bool { return true }

// terminate ends a process: there is no signal that asks it to.
func terminate(p *os.Process) { _ = p.Kill() }

func exitCode(state *os.ProcessState) int { return state.ExitCode() }
