//go:build unix

package state_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/natforward/goforward/internal/state"
)

// TestOtherOwner checks that a file that belongs to another user is not read, because its
// records could be anything.
func TestOtherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	path := filepath.Join(t.TempDir(), "state")
	f, _ := open(t, path)
	if err := f.Write(records); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := state.ReadOwn(path, 1<<20, 0o022); err != nil {
		t.Fatalf("own file: %v", err)
	}
	const other = 65534
	if err := os.Chown(path, other, other); err != nil {
		t.Fatal(err)
	}
	if content, err := state.ReadOwn(path, 1<<20, 0o022); err == nil {
		t.Errorf("ReadOwn returned another user's file: %s", content)
	}
	f, got, err := state.Open(path)
	if f != nil {
		defer f.Close()
	}
	if err == nil || len(got) != 0 {
		t.Errorf("Open returned %d records of another user's file, %v; want none, and the reason", len(got), err)
	}
}
