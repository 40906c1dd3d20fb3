//go:build !linux

package lab

import "os"

func captureSocket(string, string) (*os.File, error) { return nil, errNotLinux }

func readCaptured(*os.File, func(bool, []byte)) (int, error) { return 0, errNotLinux }
