package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// portFile is a file that holds the external port, as digits and a newline.
//
// A regular file is replaced as a whole, and a missing file is created. Other files belong to
// other programs: the target of a symbolic link, a device, a FIFO, and a file that cannot be
// replaced because it is a mount point. These are written in place, and never replaced or
// removed.
type portFile struct {
	path       string
	onWait     func()      // called if the file is a FIFO that no program reads yet
	superseded func() bool // reports whether the port that is being written is out of date; nil: never
	lastPort   uint16      // the last port written; 0: none yet
}

// check returns an error if the path cannot hold a port, or if a port would damage it.
func (p *portFile) check() error {
	info, err := os.Stat(p.path)
	switch {
	case os.IsPathSeparator(p.path[len(p.path)-1]):
		return usagef("--port-file %s names a directory: name a file in it", p.path)
	case err != nil:
		return nil //nolint:nilerr // it may exist when it is written
	}
	what := ""
	switch mode := info.Mode(); {
	case mode.IsDir():
		what = "a directory"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		what = "a block device"
	default:
		return nil
	}
	return usagef("--port-file %s is %s: name a regular file, a FIFO or a character device", p.path, what)
}

// newPortFile returns the port file with that path, or nil if the path is empty.
func (a *app) newPortFile(path string) *portFile {
	if path == "" {
		return nil
	}
	return &portFile{path: path, onWait: func() { a.messagef("--port-file: waiting for a program to read %s\n", path) }}
}

// hook returns the hook that keeps the file up to date until done is closed.
func (p *portFile) hook(a *app, done <-chan struct{}) *hook {
	h := &hook{
		event: "port_file", name: "--port-file", report: a.printHookResult,
		do:      func(ctx context.Context, e hookEvent) error { return p.write(ctx, e.granted[0].External.Port()) },
		differs: func(a, b backends.Mapping) bool { return a.External.Port() != b.External.Port() },
		pending: make(chan []backends.Mapping, 1),
	}
	p.superseded = func() bool {
		select {
		case <-done:
			return true
		default:
			return len(h.pending) > 0
		}
	}
	return h
}

// write writes the port to the file. If no program reads a FIFO, it waits until a program does
// or the context ends. It does not write a port that is superseded in the meantime.
func (p *portFile) write(ctx context.Context, port uint16) error {
	text := portFileText(port)
	info, err := os.Lstat(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = replaceFile(p.path, text)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		err = p.writeInPlace(ctx, text)
	default:
		if err = replaceFile(p.path, text); err == nil {
			break
		}
		// The file is a mount point, or its directory is not writable.
		if inPlace := p.writeInPlace(ctx, text); inPlace != nil {
			return errors.Join(err, inPlace)
		}
		err = nil
	}
	if err == nil {
		p.lastPort = port
	}
	return err
}

// replaceFile replaces the file with one that has the text, as a whole or not at all.
func replaceFile(path, text string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".goforward-port-*")
	if failure := (*os.PathError)(nil); errors.As(err, &failure) {
		return fmt.Errorf("cannot write to %s: %w", dir, failure.Err) // omits the name of the temporary file, which does not help the user
	} else if err != nil {
		return err
	}
	err = errors.Join(writeContent(f, text), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func writeContent(f *os.File, text string) error {
	if err := f.Chmod(0o644); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Sync()
}

// fifoRetryDelay is the time between two attempts to open a FIFO that no program reads.
const fifoRetryDelay = 50 * time.Millisecond

// writeInPlace writes the text to the file itself, or to the target of a link.
func (p *portFile) writeInPlace(ctx context.Context, text string) error {
	f, err := openInPlace(p.path)
	for waits := 0; hasNoReader(p.path, err); waits++ {
		if waits == 0 && p.onWait != nil {
			p.onWait()
		}
		if err := ctxsync.Sleep(ctx, fifoRetryDelay); err != nil {
			return fmt.Errorf("no program reads %s: %w", p.path, err)
		}
		if p.superseded != nil && p.superseded() {
			return errSuperseded
		}
		f, err = openInPlace(p.path)
	}
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) }) // a full FIFO would block the write
	defer stop()
	return errors.Join(overwriteContent(f, text), f.Close())
}

// overwriteContent first writes the text and then truncates the file: if the disk is full, the
// old content is not lost.
func overwriteContent(f *os.File, text string) error {
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	return errors.Join(f.Truncate(int64(len(text))), f.Sync())
}

// removeStale removes a file with any port: an earlier run that was killed left it.
func (p *portFile) removeStale() error { return p.removeIf(isPortFile) }

// remove removes the file, unless another program has written to it since. The hook must have
// stopped.
func (p *portFile) remove() error {
	if p.lastPort == 0 {
		return nil
	}
	return p.removeIf(func(text string) bool { return text == portFileText(p.lastPort) })
}

// removeIf removes a regular file whose text matches. It empties a file that was written in
// place. If there is no file, or if it does not match, removeIf returns nil.
func (p *portFile) removeIf(matches func(text string) bool) error {
	info, err := os.Stat(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() > maxPortFileSize:
		return nil
	}
	text, err := os.ReadFile(p.path)
	if err != nil || !matches(string(text)) {
		return err
	}
	if info, err := os.Lstat(p.path); err == nil && info.Mode().IsRegular() && os.Remove(p.path) == nil {
		return nil
	}
	return os.Truncate(p.path, 0)
}

// maxPortFileSize is the size of a file with the longest number.
const maxPortFileSize = int64(len("65535\n"))

func portFileText(port uint16) string { return strconv.Itoa(int(port)) + "\n" }

// isPortFile reports whether a text is a port and nothing else.
func isPortFile(text string) bool {
	port, err := strconv.ParseUint(strings.TrimSuffix(text, "\n"), 10, 16)
	return err == nil && text == portFileText(uint16(port))
}
