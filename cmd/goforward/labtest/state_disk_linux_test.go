package labtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// stateFileProgram has mappings with a state file, and sends the warnings that it logs.
var stateFileProgram = lab.Func("state file", func(p *lab.Proc) {
	var path string
	p.Args(&path)
	f, err := forward.New(&forward.Config{
		StateFile: path, DiscoveryTimeout: maxWait / 2, RequestTimeout: maxWait,
		Logger: slog.New(slog.NewTextHandler(warningSender{p}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		p.Fatal(err)
	}
	var mappings []*forward.Mapping
	for {
		var port uint16
		p.Receive(&port)
		if port != 0 {
			m, err := f.Enable(context.Background(), forward.UDP(port))
			if err != nil {
				p.Fatal(err)
			}
			mappings = append(mappings, m)
			p.Send(stateFileMessage{External: m.External().String()})
			continue
		}
		for _, m := range mappings {
			if err := m.Close(); err != nil {
				p.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			p.Fatal(err)
		}
		p.Send(stateFileMessage{External: "closed"})
		return
	}
})

// stateFileMessage is a warning or the external address of a mapping.
type stateFileMessage struct{ Warning, External string }

// warningSender is an io.Writer for a logger. It sends each record to the test.
type warningSender struct{ *lab.Proc }

func (w warningSender) Write(b []byte) (int, error) {
	w.Send(stateFileMessage{Warning: string(b)})
	return len(b), nil
}

// TestFaultDisk checks a full disk: mappings stay active, the old content of the state
// file stays, and a warning is logged. When there is space again, the state file is
// written again.
func TestFaultDisk(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "fault: the disk of the state file is full")
	home := lab.Home(t, lab.Router{})
	dir := t.TempDir()
	if err := syscall.Mount("disk", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "state")
	proc := home.Lan.Start(t, stateFileProgram, path)
	var warnings []string
	enable := func(port uint16) (external string) {
		t.Helper()
		proc.Send(port)
		for external == "" {
			var got stateFileMessage
			proc.Expect(&got)
			external = got.External
			if got.Warning != "" {
				t.Logf("warning: %s", got.Warning)
				warnings = append(warnings, got.Warning)
			}
		}
		return external
	}
	reaches := func(port uint16) {
		t.Helper()
		home.Reaches(t, home.Lan.Echo(t, "udp", externalAddr(home, port).String()[len(home.External.String()):]), externalAddr(home, port))
	}
	written := func(external string) bool { return bytes.Contains(readFile(t, path), []byte(external)) }

	first := enable(8080)
	waitUntil(t, maxWait, "the mapping is not in the state file", func() bool { return written(first) })
	before := readFile(t, path)

	filler := filepath.Join(dir, "filler")
	fillDisk(t, filler)
	enable(8081)
	reaches(8080)
	reaches(8081)
	for len(warnings) == 0 {
		var got stateFileMessage
		proc.Expect(&got) // fails the test after a timeout
		warnings = append(warnings, got.Warning)
	}
	if got := strings.Join(warnings, ""); !strings.Contains(got, "cannot be written") || !strings.Contains(got, "no space left") {
		t.Errorf("warnings: %s", got)
	}
	if now := readFile(t, path); !bytes.Equal(now, before) {
		t.Errorf("the state file was\n%s\nand now is\n%s", before, now)
	}
	if leftover, _ := filepath.Glob(path + "*tmp*"); len(leftover) != 0 {
		t.Errorf("temporary files remain: %v", leftover)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	third := enable(8082)
	waitUntil(t, maxWait, "the state file is not written again", func() bool {
		return written(first) && written(externalAddr(home, 8081).String()) && written(third)
	})
	enable(0) // close
	proc.Wait()
	wantRules(t, home, 0)
	if written(first) {
		t.Errorf("the closed mapping is still in the state file: %s", readFile(t, path))
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

// fillDisk writes to a file until the disk is full.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyN(f, zeroReader{}, 1<<20)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }
