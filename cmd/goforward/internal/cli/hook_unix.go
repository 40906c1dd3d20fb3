//go:build unix

package cli

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// setProcessGroup makes a command the leader of a new process group. The whole group is
// killed when the context of the command ends.
func setProcessGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
