package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
)

// portFile is a file that has the external port.
type portFile struct {
	path    string
	written uint16 // last; 0: nothing yet
}

// errand keeps the file right.
func (p *portFile) errand(a *app) *errand {
	return &errand{
		event: "port_file", name: "--port-file", outcome: a.sayOutcome,
		do: func(_ context.Context, n notice) error {
			port := n.granted[0].External.Port()
			err := writePortFile(p.path, port)
			if err == nil {
				p.written = port
			}
			return err
		},
		differ: func(a, b backends.Mapping) bool { return a.External.Port() != b.External.Port() },
		inbox:  make(chan []backends.Mapping, 1),
	}
}

// clear removes what an earlier run left there that was killed: any port.
func (p *portFile) clear() error {
	return removePortFile(p.path, isPortFile)
}

// remove removes what was written, unless somebody else has written since. The
// errand has ended.
func (p *portFile) remove() error {
	if p.written == 0 {
		return nil
	}
	return removePortFile(p.path, func(text string) bool { return text == portFileText(p.written) })
}

// writePortFile puts a file with the port, as digits and a newline, in the place
// of what has that name: whole or not at all. A symbolic link there is replaced,
// and not followed.
func writePortFile(path string, port uint16) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".goforward-port-*")
	if failure := (*os.PathError)(nil); errors.As(err, &failure) {
		return fmt.Errorf("cannot write to %s: %w", dir, failure.Err) // without the file's name, which is nobody's
	} else if err != nil {
		return err
	}
	err = errors.Join(fillPortFile(f, port), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func fillPortFile(f *os.File, port uint16) error {
	if err := f.Chmod(0o644); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := f.WriteString(portFileText(port)); err != nil {
		return err
	}
	return f.Sync()
}

// removePortFile removes a regular file whose text is ours. That there is none,
// or another, is success.
func removePortFile(path string, ours func(text string) bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() > longestPortFile:
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil || !ours(string(text)) {
		return err
	}
	return os.Remove(path)
}

// longestPortFile is the size of a file with the longest number.
const longestPortFile = int64(len("65535\n"))

func portFileText(port uint16) string { return strconv.Itoa(int(port)) + "\n" }

// isPortFile reports whether a text is a port and nothing else.
func isPortFile(text string) bool {
	port, err := strconv.ParseUint(strings.TrimSuffix(text, "\n"), 10, 16)
	return err == nil && text == portFileText(uint16(port))
}
