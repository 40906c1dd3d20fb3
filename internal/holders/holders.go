// Package holders counts the programs of one user that hold an endpoint of a gateway.
// NAT-PMP, PCP with a common key, and UPnP cannot distinguish two programs of one host, so
// the last one that holds a mapping must delete it, and no other.
//
// The programs share an empty file. Each byte of it stands for one endpoint. A holder has a
// shared lock of that byte, and a program that deletes has an exclusive one. The kernel
// releases the locks of a program that ends or crashes. Nothing is ever written to the file.
//
// There can be two such files, in two directories, and a lock is one in each of them. A program
// without XDG_RUNTIME_DIR, such as a service, has only the file in the directory of temporary
// files; and the runtime directory is deleted at the user's last logout, even if a program
// still runs.
//
// On Unix, the locks belong to the process, and all of them end if the process closes any
// descriptor of the file. Therefore, a process opens the file once and never closes it.
package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Endpoint is the side of a mapping that identifies it. NAT-PMP, PCP and pinholes identify a
// mapping by its internal endpoint; UPnP identifies it by its external port and peer.
type Endpoint struct {
	Gateway  netip.AddrPort
	Host     netip.Addr // the internal address; the zero Addr if it is unknown
	Remote   netip.Addr // of an external endpoint: the only peer that may connect, or the zero Addr
	Protocol backends.Protocol
	External bool
	Port     uint16
}

// Key identifies an Endpoint. It is the position of the endpoint's byte in the file. The
// methods of Registry ignore a zero Key.
type Key int64

// Key returns the key of the endpoint: 46 bits of a hash, one bit for the side, and the port.
// All versions of this library must compute the same value. The kernel merges locks of
// adjacent bytes.
func (e Endpoint) Key() Key {
	const (
		basis, prime = 14695981039346656037, 1099511628211 // FNV-1a
		hashBits     = 46
	)
	var buf [256]byte
	b := append(append(buf[:0], namespace()...), ' ')
	b = append(e.Gateway.AppendTo(b), ' ')
	b = append(e.Host.Unmap().WithZone("").AppendTo(b), ' ')
	b = append(e.Remote.Unmap().AppendTo(b), ' ', byte(e.Protocol))
	hash := uint64(basis)
	for _, c := range b {
		hash = (hash ^ uint64(c)) * prime
	}
	at := hash>>(64-hashBits)<<17 | uint64(e.Port)
	if e.External {
		at |= 1 << 16
	}
	return Key(at) //nolint:gosec // 63 bits
}

// namespace returns the name of this process's network namespace, or "" if the system has
// none. Hosts in different namespaces can have the same addresses.
var namespace = sync.OnceValue(func() string {
	name, _ := os.Readlink("/proc/self/ns/net")
	return name
})

// mode is the mode of a lock.
type mode uint8

const (
	unlocked mode = iota
	shared
	exclusive
)

// errInUse is the error of setLock if another process has a conflicting lock.
var errInUse = errors.New("another process has the lock")

// counts describes the holders of one byte in this process, and the lock for them.
type counts struct {
	holds, deletions uint16
	has              mode // of the lock
}

// needs returns the mode that the counts require.
func (c counts) needs() mode {
	switch {
	case c.deletions > 0:
		return exclusive
	case c.holds > 0:
		return shared
	}
	return unlocked
}

// Registry has the endpoints that this process holds. The methods of a nil Registry act as if
// no other program existed.
type Registry struct {
	files []*lockFile
}

// lockFile is one of the files, with the endpoints that this process holds in it. There must be
// one lockFile per file and process.
type lockFile struct {
	file *os.File
	mu   sync.Mutex // the system calls under it do not block
	held map[Key]counts
}

// Default returns the registry of this user, or nil and the reason why there is none. It has a
// file in the directory $XDG_RUNTIME_DIR/goforward, if there is one, and a file in goforward-UID
// in the directory of temporary files. One of them is enough.
var Default = sync.OnceValues(func() (*Registry, error) { return Open(directories()...) })

// Open opens the registry in directories. It fails if none can be used.
func Open(dirs ...string) (*Registry, error) {
	var r Registry
	var errs []error
	for _, dir := range dirs {
		if f, err := openIn(dir); err == nil {
			r.files = append(r.files, f)
		} else {
			errs = append(errs, err)
		}
	}
	if len(r.files) == 0 {
		return nil, errors.Join(errs...)
	}
	return &r, nil
}

// directories returns the directories that Default tries.
func directories() (dirs []string) {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() && isOwn(info) {
			dirs = append(dirs, filepath.Join(dir, "goforward"))
		}
	}
	name := "goforward"
	if id := os.Geteuid(); id >= 0 { // on Windows, each user has a directory of temporary files
		name += "-" + strconv.Itoa(id)
	}
	return append(dirs, filepath.Join(os.TempDir(), name))
}

// openIn opens the file in a directory. It creates the directory, but not its parent. Only this
// user may have access to the directory.
func openIn(dir string) (*lockFile, error) {
	err := os.Mkdir(dir, 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		var info fs.FileInfo
		if info, err = os.Lstat(dir); err == nil {
			err = checkPrivate(info, fs.ModeDir)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("holders: %s: %w", dir, err)
	}
	path := filepath.Join(dir, "holders.lock")
	// The sticky bit keeps programs that delete old files, such as systemd-tmpfiles, from
	// deleting the file: it is never written to.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600|fs.ModeSticky)
	if err != nil {
		return nil, fmt.Errorf("holders: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		err = checkPrivate(info, 0)
	}
	if err == nil { // not every file system has locks
		_, err = setLock(file, 0, unlocked, shared)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("holders: %s: %w", path, err)
	}
	_, _ = setLock(file, 0, shared, unlocked)
	return &lockFile{file: file, held: map[Key]counts{}}, nil
}

// checkPrivate returns an error if a file does not have the type, belongs to another user, or
// gives other users permissions.
func checkPrivate(info fs.FileInfo, want fs.FileMode) error {
	switch {
	case info.Mode().Type() != want:
		return fmt.Errorf("the file type is %v", info.Mode().Type())
	case !isOwn(info):
		return errors.New("it belongs to another user")
	case hasModes && info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("other users have permissions: mode %v", info.Mode().Perm())
	}
	return nil
}

// change changes the counts of a byte in all files, and its locks if necessary. It returns
// false if another process has a conflicting lock.
func (r *Registry) change(k Key, holds, deletions int) bool {
	ok := true
	if r != nil && k != 0 {
		for _, f := range r.files {
			ok = f.change(k, holds, deletions) && ok
		}
	}
	return ok
}

// change is Registry.change for one file. It returns true if there is no lock for another
// reason: for example, the system has no more of them.
func (f *lockFile) change(k Key, holds, deletions int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.held[k]
	c.holds += uint16(holds)         //nolint:gosec // not below zero
	c.deletions += uint16(deletions) //nolint:gosec // the same
	var err error
	if c.has != c.needs() {
		c.has, err = setLock(f.file, int64(k), c.has, c.needs())
	}
	if f.held[k] = c; c == (counts{}) {
		delete(f.held, k)
	}
	return !errors.Is(err, errInUse)
}

// Hold adds a holder of each endpoint. It returns false if another process is deleting one of
// them at the moment, so that the caller should Wait. Each Hold needs a Release.
func (r *Registry) Hold(keys ...Key) bool {
	ok := true
	for _, k := range keys {
		ok = r.change(k, 1, 0) && ok
	}
	return ok
}

// Release removes a holder of each endpoint.
func (r *Registry) Release(keys ...Key) {
	for _, k := range keys {
		r.change(k, -1, 0)
	}
}

// Wait waits until no other process is deleting one of the endpoints, which this process
// holds. It waits until ctx ends and for three seconds at the longest.
func (r *Registry) Wait(ctx context.Context, keys ...Key) {
	const (
		interval = 20 * time.Millisecond
		longest  = 3 * time.Second
	)
	for range longest / interval {
		isFree := true
		for _, k := range keys {
			isFree = r.change(k, 0, 0) && isFree
		}
		if isFree || ctxsync.Sleep(ctx, interval) != nil {
			return
		}
	}
}

// BeginDelete reports whether no other process holds the endpoint. If so, no other process
// can hold it until the caller calls end. A holder must call Release first: of several
// programs that end at the same time, one then succeeds. Other holders in this process do not
// count.
func (r *Registry) BeginDelete(k Key) (end func(), ok bool) {
	if r.change(k, 0, 1) {
		return func() { r.change(k, 0, -1) }, true
	}
	r.change(k, 0, -1)
	return nil, false
}

// Holder reports whether another process holds or deletes the endpoint. It returns the
// process ID, or 0 if the system does not report it.
func (r *Registry) Holder(k Key) (pid int, held bool) {
	if r == nil || k == 0 {
		return 0, false
	}
	for _, f := range r.files {
		f.mu.Lock()
		pid, held = holder(f.file, int64(k), f.held[k].has)
		f.mu.Unlock()
		if held {
			return pid, true
		}
	}
	return 0, false
}
