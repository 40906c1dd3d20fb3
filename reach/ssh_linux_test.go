package reach

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// sshFar is the fake ssh for a login that works, on a host whose processes do not end with ssh.
const sshFar = `exec 3>&1
sed -u -e 's/45\.45\.45\.1/127.0.0.1/g' | PATH=$REMOTE exec /usr/bin/setsid $SH`

// processes returns the names of the processes of the fake ssh and of the other host.
func processes(t *testing.T) (names []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(env, []byte("REMOTE="+os.Getenv("REMOTE")+"\x00")) {
			continue // it has ended, or is another one
		}
		name, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
		names = append(names, string(bytes.TrimSpace(name)))
	}
	return names
}

// awaitProcesses waits until the processes of the other host are as expected.
func awaitProcesses(t *testing.T, is func(names []string) bool) {
	t.Helper()
	for begun := time.Now(); ; {
		names := processes(t)
		if is(names) {
			return
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("the processes are %q", names)
		}
		_ = ctxsync.Sleep(t.Context(), pollInterval)
	}
}

// TestSSHEnds checks that no process remains on the other host after a success and after the end of the context.
func TestSSHEnds(t *testing.T) {
	for _, sh := range []string{"/bin/sh", "/bin/bash"} {
		for _, way := range []string{"bash", "goforward"} {
			for _, end := range []string{"arrival", "cancel"} {
				t.Run(sh+" "+way+" "+end, func(t *testing.T) {
					fakeSSH(t, sshFar, way)
					t.Setenv("SH", sh)
					target, source := sshTarget(t, backends.TCP, false)
					if end == "arrival" {
						if e, err := SSH("example.org").Probe(t.Context(), target, &sourceCatcher{Catcher: openPort(t, target, OwnerTemporary), from: source}); err != nil || e.Verdict != Reachable {
							t.Fatalf("%+v, %v", e, err)
						}
						awaitProcesses(t, func(names []string) bool { return len(names) == 0 })
						return
					}
					port := openPort(t, target, OwnerTemporary)
					port.Close()
					fillBacklog(t, target)
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					ended := make(chan error, 1)
					go func() {
						e, err := SSH("example.org").Probe(ctx, target, port)
						if e.Verdict != Unknown {
							err = errors.New(e.Detail)
						}
						ended <- err
					}()
					awaitProcesses(t, func(names []string) bool { return len(names) >= 2 && slices.Contains(names, way) })
					cancel(errMeasured)
					if err := <-ended; !errors.Is(err, errMeasured) {
						t.Errorf("%v", err)
					}
					awaitProcesses(t, func(names []string) bool { return len(names) == 0 })
				})
			}
		}
	}
}

// fillBacklog makes the port of a target ignore connections.
func fillBacklog(t *testing.T, target Target) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	at := &unix.SockaddrInet4{Port: int(target.Internal.Port()), Addr: target.Internal.Addr().As4()}
	if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	dial(t, target) // the only connection that waits to be accepted
}

// TestSSHKilled checks that the children of ssh end too.
func TestSSHKilled(t *testing.T) {
	for _, body := range []string{"sleep 60 & wait", "sleep 60 & echo text"} {
		fakeSSH(t, body)
		target, _ := sshTarget(t, backends.TCP, false)
		prober := SSH("example.org").(*sshHost)
		prober.timeout = 50 * time.Millisecond
		if e, err := prober.Probe(t.Context(), target, openPort(t, target, OwnerTemporary)); err == nil || e.Verdict != Unknown {
			t.Errorf("%+v, %v", e, err)
		}
		awaitProcesses(t, func(names []string) bool { return len(names) == 0 })
	}
}
