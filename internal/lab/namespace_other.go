//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

var errNotLinux = fmt.Errorf("network namespaces need Linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)

func startInNamespaces(func() *exec.Cmd) (int, error) { return 0, errNotLinux }

func enterNamespaces() error { return errNotLinux }

func adoptOrphans() error { return errNotLinux }

func inheritedFile(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }

func inNetns(string, func() error) error { return errNotLinux }
