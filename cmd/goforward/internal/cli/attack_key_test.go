package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/cmd/goforward/internal/cli"
	"github.com/natforward/goforward/gatewaytest"
)

// TestKeyOfOthers: the key that PCP nonces come from is nobody else's to know or
// to write, and what stands in its place holds nobody up. A mapping is made all
// the same, with a nonce that nobody knows.
func TestKeyOfOthers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("modes, fifos and owners as Linux has them")
	}
	known := strings.Repeat("k", 32)
	for name, plant := range map[string]func(t *testing.T, path string){
		"everybody may write it": func(t *testing.T, path string) { write(t, path, known, 0o666) },
		"everybody may read it":  func(t *testing.T, path string) { write(t, path, known, 0o644) },
		"a link to one": func(t *testing.T, path string) {
			write(t, path+"-theirs", known, 0o600)
			if err := os.Symlink(path+"-theirs", path); err != nil {
				t.Fatal(err)
			}
		},
		"another user's": func(t *testing.T, path string) {
			if os.Getuid() != 0 {
				t.Skip("it takes root to give a file away")
			}
			write(t, path, known, 0o600)
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Skip(err)
			}
		},
		"a fifo": func(t *testing.T, path string) {
			if err := exec.CommandContext(t.Context(), "mkfifo", path).Run(); err != nil {
				t.Skip(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("XDG_STATE_HOME", dir)
			path := filepath.Join(dir, "goforward", "nonce.key")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			plant(t, path)
			if name != "a fifo" { // which a naive client waits at for ever
				if b, err := os.ReadFile(path); err != nil || string(b) != known {
					t.Fatalf("the naive client reads %q, %v: this is no attack", b, err)
				}
			}
			first, second := nonceWith(t, path), nonceWith(t, path)
			if first == "" || first == second {
				t.Errorf("mapped with the nonces %x and %x: whoever has the key knows them", first, second)
			}
		})
	}
}

// nonceWith maps a port in a process of a moment, and returns the nonce that it
// used: RFC 6887, section 11.1.
func nonceWith(t *testing.T, key string) (nonce string) {
	t.Helper()
	gw := router(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	ended := make(chan int, 1)
	var stdout, stderr bytes.Buffer
	go func() {
		ended <- cli.Run(t.Context(), []string{"map", "8080", "-g", gw.Addr().String(), "--backend", "pcp", "--announce", nowhere.String(), "--timeout", "2"}, &stdout, &stderr)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("who waits for the key waits for ever")
		if f, err := os.OpenFile(key, os.O_RDWR, 0); err == nil { // lets it go on
			_, _ = f.Write([]byte("x"))
			_ = f.Close()
		}
		<-ended
	}
	for _, r := range gw.Requests() {
		if r.Op == gatewaytest.OpMap {
			nonce = string(r.Raw[24:36])
		}
	}
	if nonce == "" {
		t.Errorf("nothing was mapped: %s%s", &stdout, &stderr)
	}
	return nonce
}
