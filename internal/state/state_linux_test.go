package state_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"github.com/natforward/goforward/internal/state"
	"golang.org/x/sys/unix"
)

// syncCall describes a call of fsync, and the contents of the state file during the call.
type syncCall struct {
	directory bool
	content   string // contents of the synced file
	state     string // contents of the state file
}

// writeWatched calls change, which replaces the contents of a state file. It returns the
// calls of fsync and fdatasync that change made. Each call blocks until it has been
// inspected.
func writeWatched(t *testing.T, path string, change func() error) (calls []syncCall) {
	t.Helper()
	listener, written := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the filter ends with the thread
		fd, err := notifySyncs()
		if err != nil {
			close(listener)
			return
		}
		listener <- fd
		written <- change()
	}()
	fd, ok := <-listener
	if !ok {
		t.Skip("SYNC NOT TESTED: the kernel or a sandbox does not let a thread watch its own system calls")
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			return calls
		default:
		}
		if !isPending(t, fd) {
			continue
		}
		answerSync(t, fd, func(of uint64) { calls = append(calls, inspectFile(t, path, of)) })
	}
}

// inspectFile reads the file to which a file descriptor refers, and the state file.
func inspectFile(t *testing.T, path string, fd uint64) syncCall {
	t.Helper()
	at := fmt.Sprintf("/proc/self/fd/%d", fd)
	info, err := os.Stat(at)
	if err != nil {
		t.Fatal(err)
	}
	s := syncCall{directory: info.IsDir()}
	if !s.directory {
		content, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		s.content = string(content)
	}
	state, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.state = string(state)
	return s
}

// notifySyncs makes the calls of fsync and fdatasync of this thread block. It returns the
// file descriptor that reports them.
func notifySyncs() (int, error) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 2, K: unix.SYS_FSYNC},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_FDATASYNC},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// isPending reports whether a call is blocked. It waits for one for a short time.
func isPending(t *testing.T, fd int) bool {
	t.Helper()
	const moment = 10 // milliseconds
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, moment); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
	return fds[0].Revents&unix.POLLIN != 0
}

// answerSync inspects a blocked call and lets it continue.
func answerSync(t *testing.T, fd int, inspect func(fd uint64)) {
	t.Helper()
	var call struct { // struct seccomp_notif
		id           uint64
		pid, flags   uint32
		number, arch uint32
		pointer      uint64
		args         [6]uint64
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&call))); errno != 0 {
		t.Fatal(errno)
	}
	inspect(call.args[0])
	response := struct { // struct seccomp_notif_resp
		id    uint64
		value int64
		err   int32
		flags uint32
	}{id: call.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&response))); errno != 0 {
		t.Fatal(errno)
	}
}

// rewrite writes a file twice. It returns the calls of the second write, and the contents
// before and after it.
func rewrite(t *testing.T) (calls []syncCall, before, after string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	f, _ := open(t, path)
	content := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := f.Write(records[:1]); err != nil {
		t.Fatal(err)
	}
	before = content()
	calls = writeWatched(t, path, func() error { return f.Write(records) })
	return calls, before, content()
}

// TestWriteSynced checks that the new contents are synced before they replace the old ones.
// After a power failure, the file has either the old or the new contents.
func TestWriteSynced(t *testing.T) {
	calls, before, after := rewrite(t)
	for _, c := range calls {
		if !c.directory && c.content == after && c.state == before {
			return
		}
	}
	t.Errorf("the new contents are not synced before the rename; calls of fsync: %+v", calls)
}

// TestWriteSyncsDirectory checks that the directory is synced after the rename, so that a
// successful Write survives a power failure.
func TestWriteSyncsDirectory(t *testing.T) {
	calls, _, after := rewrite(t)
	for _, c := range calls {
		if c.directory && c.state == after {
			return
		}
	}
	t.Errorf("the directory is not synced after the rename; calls of fsync: %+v", calls)
}

// TestUnreadable checks that a file that cannot be opened at the moment remains as it is.
// Open fails and unlocks the file; a later Open succeeds.
func TestUnreadable(t *testing.T) {
	for name, test := range map[string]struct {
		mode   os.FileMode
		openIt func(t *testing.T, path string) (*state.File, []state.Record, error)
	}{
		"permission denied":   {0, openUnprivileged},
		"too many open files": {0o600, openWithoutDescriptors},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			f, _ := open(t, path)
			if err := f.Write(records); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			f, got, err := test.openIt(t, path)
			if f != nil || len(got) != 0 || err == nil {
				t.Errorf("Open: %v, %v, %v; want no file and no records, and the reason", f, got, err)
			}
			if aside, err := filepath.Glob(path + ".damaged*"); err != nil || len(aside) != 0 {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, got = open(t, path); len(got) != len(records) {
				t.Errorf("a later Open returns %d records, want %d", len(got), len(records))
			}
		})
	}
}

// openUnprivileged opens a state file in a thread without root's privilege to read every
// file.
func openUnprivileged(t *testing.T, path string) (f *state.File, records []state.Record, err error) {
	t.Helper()
	var dropped error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends without its privileges
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if dropped = unix.Capset(&header, &none[0]); dropped == nil {
			f, records, err = state.Open(path)
		}
	}()
	<-done
	if dropped != nil {
		t.Fatal(dropped)
	}
	return f, records, err
}

// openWithoutDescriptors opens a state file in a process that can open only one more file.
// That is enough for the lock but not for the state file.
func openWithoutDescriptors(t *testing.T, path string) (*state.File, []state.Record, error) {
	t.Helper()
	next, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	lowest := uint64(next.Fd()) // the lowest free descriptor
	_ = next.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lowest + 1, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	return state.Open(path)
}
