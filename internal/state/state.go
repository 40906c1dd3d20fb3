// Package state keeps what a program holds on gateways in a file, so that its
// next run can take that over: ports, and the secrets that some protocols need.
//
// The file is written atomically, for its owner alone, and read only as far as
// it makes sense. One that does not is set aside, never lost.
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

// Record is a mapping that somebody holds.
type Record struct {
	// Port is the internal port that it was wished for with, which need not be the
	// one that it has.
	Port    uint16
	Mapping backends.Mapping
}

// The bounds of a file: more than a host has ports.
const (
	maxRecords = 1 << 17
	maxSize    = 64 << 20
)

const version = 1

type contents struct {
	Version  int   `json:"version"`
	Mappings []row `json:"mappings"`
}

// row is a Record in the file.
type row struct {
	Port    uint16     `json:"port"`
	Mapping rowMapping `json:"mapping"`
}

// rowMapping has the bytes of the token in place of the Token, which hides them from JSON.
type rowMapping struct {
	backends.Mapping
	Token []byte
}

// ErrInUse is what Open fails with where another process, or another part of
// this one, has the file.
var ErrInUse = errors.New("the state file is in use")

// File is a file that nobody else has.
type File struct {
	path string
	lock *os.File
}

// Open takes the file, and returns what is in it: nothing where there is none.
// What is there and cannot be read, or is not to be trusted, is renamed to
// have ".damaged" at its end, and the error says why; the File is valid then.
// Without a File, the error is ErrInUse or what keeps the file from being had.
func Open(path string) (*File, []Record, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("state: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, nil, fmt.Errorf("state: %s: %w", path, err)
	}
	f := &File{path: path, lock: lock}
	records, err := read(path)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return f, records, nil
	}
	aside := path + ".damaged"
	if moveErr := os.Rename(path, aside); moveErr != nil {
		return f, nil, fmt.Errorf("state: %s: %w; it cannot be set aside: %w", path, err, moveErr)
	}
	return f, nil, fmt.Errorf("state: %s: %w: set aside as %s", path, err, aside)
}

// read reads what a file of ours holds.
func read(path string) ([]Record, error) {
	b, err := ReadOwn(path, maxSize, 0o022)
	if err != nil {
		return nil, err
	}
	return parse(b)
}

// ReadOwn reads a file of at most so many bytes that is this user's own, or
// root's: a regular one, at no link's end, and without the permissions of others
// that are named, where the system has such. It never blocks.
func ReadOwn(path string, most int64, others fs.FileMode) ([]byte, error) {
	file, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case isOthers(info, others):
		return nil, fmt.Errorf("it is not this user's alone: mode %v", info.Mode().Perm())
	case info.Size() > most:
		return nil, fmt.Errorf("%d bytes", info.Size())
	}
	return io.ReadAll(io.LimitReader(file, most))
}

// parse reads the contents of a file.
func parse(b []byte) ([]Record, error) {
	var c contents
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if c.Version != version {
		return nil, fmt.Errorf("version %d, want %d", c.Version, version)
	}
	if len(c.Mappings) > maxRecords {
		return nil, fmt.Errorf("%d mappings", len(c.Mappings))
	}
	records := make([]Record, len(c.Mappings))
	for i, in := range c.Mappings {
		r := Record{in.Port, in.Mapping.Mapping}
		r.Mapping.Token = backends.NewToken(in.Mapping.Token)
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("mapping %d: %w", i, err)
		}
		records[i] = r
	}
	return records, nil
}

// check refuses what no backend grants.
func (r Record) check() error {
	m := r.Mapping
	if err := m.Check(); err != nil {
		return err
	}
	const longestToken = 1 << 10
	if r.Port == 0 || m.Backend == "" || m.Lifetime <= 0 || m.External.Port() == 0 || len(m.Token.Bytes()) > longestToken {
		return fmt.Errorf("%w: incomplete", backends.ErrInvalid)
	}
	return nil
}

// Write replaces the file's contents: either all of them or none.
func (f *File) Write(records []Record) error {
	rows := make([]row, len(records))
	for i, r := range records {
		rows[i] = row{r.Port, rowMapping{r.Mapping, r.Mapping.Token.Bytes()}}
	}
	b, err := json.Marshal(contents{version, rows})
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if err := replace(f.path, b); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

func replace(path string, b []byte) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // its mode is 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(b)
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// Close lets others have the file.
func (f *File) Close() error {
	if err := f.lock.Close(); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}
