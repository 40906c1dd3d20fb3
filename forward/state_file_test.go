package forward_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
)

// A Forwarder that finds its state file in use takes it as soon as it is free, and
// records what it holds.
func TestStateFileFreedLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, second := forwarder(t, forward.Config{StateFile: path}, m), forwarder(t, forward.Config{StateFile: path}, m)
		defer first.Close()
		defer second.Close()
		enable := func(f *forward.Forwarder, port uint16) {
			t.Helper()
			if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
				t.Fatal(err)
			}
		}
		enable(first, 8080)
		enable(second, 9090) // while the first has the file
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		enable(second, 9191)
		time.Sleep(10 * time.Minute)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !holds(":9090", ":9191")(string(content)) {
			t.Errorf("ten minutes after the file was freed it has %s\nwant what the second Forwarder holds, 9090 and 9191", content)
		}
	})
}

// Each damaged file is set aside under a name of its own.
func TestStateFileDamagedTwice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	damaged := []string{"{the first", "{the second", "{the third"}
	for _, content := range damaged {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f := forwarder(t, forward.Config{StateFile: path}, newMemory())
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]string{} // names by content
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		kept[string(content)] = file.Name()
	}
	for _, content := range damaged {
		if kept[content] == "" {
			t.Errorf("the damaged file %q is lost; the directory has %v", content, files)
		}
	}
}
