// Package state reads and writes the state file of a program. The file has the program's
// mappings on gateways, with the secrets that some protocols need to renew or delete them.
// The next run of the program resumes the mappings. Only its owner can read a file that this
// package writes. An invalid file is renamed, never deleted.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/natforward/goforward/backends"
)

// Record describes a mapping that a program holds.
type Record struct {
	// Port is the internal port that was requested. The internal port of the mapping may
	// differ.
	Port uint16
	// Count is the number of ports of the range to which the mapping belongs, starting at
	// Port. It is 0 for a mapping that is not part of a range.
	Count   uint16
	Mapping backends.Mapping
}

const (
	version = 1
	maxSize = 64 << 20 // enough to record all ports of a host
)

type contents struct {
	Version  int   `json:"version"`
	Mappings []row `json:"mappings"`
}

// row is the form of a Record in the file.
type row struct {
	Port    uint16     `json:"port"`
	Count   uint16     `json:"count,omitempty"`
	Mapping rowMapping `json:"mapping"`
}

// isInRange reports whether the internal port belongs to the range. It returns true if there
// is no range of several ports.
func (r row) isInRange() bool {
	port := r.Mapping.Internal.Port()
	return r.Count <= 1 || port >= r.Port && port-r.Port < r.Count && r.Port+r.Count-1 >= r.Port
}

// rowMapping replaces the Token, which does not appear in JSON, by its bytes.
type rowMapping struct {
	backends.Mapping
	Token []byte
}

// ErrInUse is returned by Open if another process, or another File of this process, has
// locked the file.
var ErrInUse = errors.New("the state file is in use")

// File is a locked state file.
type File struct {
	path string
	lock *os.File
}

// Open locks the file and reads its records. A file that does not exist has no records. The
// file must be a regular file that only this user and root can write. If it is not, or if the
// contents are invalid, Open sets it aside: it adds ".damaged" to the name, and a number if
// that name is taken. Open then returns an empty File together with the reason as an error.
// After any other error there is no File, nothing has changed, and a later call may succeed.
// On AIX, Plan 9 and WebAssembly, files cannot be locked and the error is
// errors.ErrUnsupported.
func Open(path string) (*File, []Record, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("state: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, nil, fmt.Errorf("state: %s: %w", path, err)
	}
	f := &File{path, lock}
	records, err := read(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return f, records, nil
	}
	if errors.As(err, &invalidError{}) {
		aside, failed := setAside(path)
		if failed == nil {
			return f, nil, fmt.Errorf("state: %s: %w: set aside as %s", path, err, aside)
		}
		err = fmt.Errorf("%w; it cannot be set aside: %w", err, failed)
	}
	_ = lock.Close()
	return nil, nil, fmt.Errorf("state: %s: %w", path, err)
}

// lockFile creates and locks a lock file. The lock ends with the process at the latest.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, err
	}
	if err = tryLock(f); err != nil {
		_ = f.Close()
	}
	return f, err
}

// setAside renames a file to a name that no other file has, and returns the new name.
func setAside(path string) (string, error) {
	const maxNames = 100
	aside := path + ".damaged"
	for n := 2; ; n++ {
		reserved, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) && n <= maxNames {
			aside = fmt.Sprintf("%s.damaged.%d", path, n)
			continue
		}
		if err != nil {
			return "", err
		}
		_ = reserved.Close()
		if info, err := os.Lstat(path); err == nil && info.IsDir() { // a directory cannot replace a file
			_ = os.Remove(aside)
		}
		if err = os.Rename(path, aside); err != nil {
			_ = os.Remove(aside)
		}
		return aside, err
	}
}

// invalidError is the reason to set a file aside. Other errors may be temporary.
type invalidError struct{ error }

func invalid(format string, args ...any) error { return invalidError{fmt.Errorf(format, args...)} }

// ReadOwn reads a file of at most limit bytes. The file must be a regular file, not a link,
// and belong to this user or root. If the system has permissions for other users, none of the
// permissions in others may be set. ReadOwn never blocks.
func ReadOwn(path string, limit int64, others fs.FileMode) ([]byte, error) {
	check := func(info fs.FileInfo, err error) error {
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return invalid("not a regular file")
		case othersHaveAccess(info, others):
			return invalid("another user owns it or has permissions: mode %v", info.Mode().Perm())
		case info.Size() > limit:
			return invalid("the file has %d bytes, more than %d", info.Size(), limit)
		}
		return nil
	}
	if err := check(os.Lstat(path)); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := check(file.Stat()); err != nil { // it may be another file by now
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, limit))
}

// read reads the records of a file.
func read(path string) ([]Record, error) {
	b, err := ReadOwn(path, maxSize, 0o022)
	if err != nil {
		return nil, err
	}
	var c contents
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, invalid("%w", err)
	}
	if c.Version != version {
		return nil, invalid("version %d, want %d", c.Version, version)
	}
	const longestToken = 1 << 10
	records := make([]Record, len(c.Mappings))
	for i, in := range c.Mappings {
		m := in.Mapping.Mapping
		m.Token = backends.NewToken(in.Mapping.Token)
		if err := m.Check(); err != nil {
			return nil, invalid("mapping %d: %w", i, err)
		}
		if in.Port == 0 || !in.isInRange() || m.Backend == "" || m.Lifetime <= 0 || m.External.Port() == 0 || len(in.Mapping.Token) > longestToken {
			return nil, invalid("mapping %d is incomplete", i)
		}
		records[i] = Record{in.Port, in.Count, m}
	}
	return records, nil
}

// Write replaces the file's contents, completely or not at all. If it returns nil,
// the new contents survive a power failure.
func (f *File) Write(records []Record) error {
	rows := make([]row, len(records))
	for i, r := range records {
		rows[i] = row{r.Port, r.Count, rowMapping{r.Mapping, r.Mapping.Token.Bytes()}}
	}
	if err := replace(f.path, contents{version, rows}); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func replace(path string, c contents) error {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // CreateTemp sets mode 0600
	if err != nil {
		return err
	}
	if err = json.NewEncoder(temp).Encode(c); err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Close unlocks the file.
func (f *File) Close() error { return f.lock.Close() }
