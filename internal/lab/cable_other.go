//go:build !linux

package lab

import "os"

const (
	frameHeaderSize = 0
	frameBufferSize = 64 << 10
)

func packetSocket(string, string) (*os.File, error) { return nil, errNotLinux }

func isClosed(err error) bool { return err != nil }
