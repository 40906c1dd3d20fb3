//go:build !linux

package lab

import "os"

const (
	frameHead = 0
	frameSize = 64 << 10
)

func packetSocket(string, string) (*os.File, error) { return nil, errNotLinux }

func isGone(err error) bool { return err != nil }
