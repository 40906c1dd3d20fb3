//go:build unix

package reach

import (
	"os/exec"
	"syscall"
)

// setGroup makes a command the leader of a new process group, which is killed when the context of the
// command ends.
func setGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { killGroup(cmd); return nil }
}

// killGroup kills the processes that a command has started.
func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
