package attack_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/state"
)

// stateFileFor returns a state file that an attacker wrote: it has a mapping of
// this host at a gateway.
func stateFileFor(gateway netip.AddrPort) string {
	return fmt.Sprintf(`{"version":1,"mappings":[{"port":8080,"mapping":{"Backend":"natpmp","Gateway":"%v","Protocol":"tcp",`+
		`"Internal":"127.0.0.1:8080","External":"45.45.45.1:6666","Remote":"","Lifetime":3600000000000,"Granted":"%s"}}]}`,
		gateway, time.Now().UTC().Format(time.RFC3339))
}

// naiveState reads a state file without checks.
func naiveState(path string) (found bool) {
	b, err := os.ReadFile(path)
	var contents struct{ Mappings []json.RawMessage }
	return err == nil && json.Unmarshal(b, &contents) == nil && len(contents.Mappings) > 0
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // regardless of the umask
		t.Fatal(err)
	}
}

// TestUntrustedStateFile checks that a state file that another user could have
// written is ignored, and that the program continues without it.
func TestUntrustedStateFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs the modes, links and owners of Linux")
	}
	gateway := netip.AddrPortFrom(bystander, 5351)
	for name, plant := range map[string]func(t *testing.T, path string){
		"writable by all":       func(t *testing.T, path string) { writeFile(t, path, stateFileFor(gateway), 0o666) },
		"writable by its group": func(t *testing.T, path string) { writeFile(t, path, stateFileFor(gateway), 0o620) },
		"symbolic link": func(t *testing.T, path string) {
			writeFile(t, path+"-target", stateFileFor(gateway), 0o600)
			if err := os.Symlink(path+"-target", path); err != nil {
				t.Fatal(err)
			}
		},
		"owned by another user": func(t *testing.T, path string) {
			if os.Getuid() != 0 {
				t.Skip("only root can change a file's owner")
			}
			writeFile(t, path, stateFileFor(gateway), 0o644)
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Skip(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			plant(t, path)
			if !naiveState(path) {
				t.Fatal("the naive client finds nothing: the attack has no effect")
			}
			f, records, err := state.Open(path)
			if f == nil || err == nil || len(records) != 0 {
				t.Fatalf("Open: %v, %v; want an empty file and an error", records, err)
			}
			if err := f.Write(nil); err != nil {
				t.Error(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUnreadableStateFile checks that a path that is not a regular file, or a file
// that is too large, does not block the program or use memory.
func TestUnreadableStateFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs the fifos of Linux")
	}
	dir := t.TempDir()
	fifo, huge, lock := filepath.Join(dir, "fifo"), filepath.Join(dir, "huge"), filepath.Join(dir, "locked")
	for _, path := range []string{fifo, lock + ".lock"} {
		if err := exec.CommandContext(t.Context(), "mkfifo", path).Run(); err != nil {
			t.Skip(err)
		}
	}
	writeFile(t, huge, `{"version":1,"mappings":[`, 0o600)
	if err := os.Truncate(huge, 1<<40); err != nil { // a sparse file
		t.Skip(err)
	}
	if info, err := os.Stat(huge); err != nil || info.Size() < 1<<40 {
		t.Fatalf("the naive client reads %v: the attack has no effect", info)
	}
	checkNoLeaks(t, func() {
		before := allocated()
		for path, bad := range map[string]bool{fifo: true, huge: true, lock: false} {
			f, records, err := state.Open(path)
			if f == nil || (err != nil) != bad || len(records) != 0 {
				t.Errorf("Open %s: %v, %v", path, records, err)
				continue
			}
			if err := f.Write(nil); err != nil {
				t.Error(err)
			}
			if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%s is %v, %v", path, info, err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := allocated() - before; n > 8<<20 {
			t.Errorf("%d bytes allocated", n)
		}
	})
}

// TestStateFileLinks checks that moving a damaged state file and writing a new one
// replace symbolic links instead of following them, and that a lock file that is a
// link is refused.
func TestStateFileLinks(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links differ on Windows")
	}
	dir := t.TempDir()
	path, other := filepath.Join(dir, "state"), filepath.Join(dir, "other")
	writeFile(t, other, "other", 0o600)
	writeFile(t, path, "damaged", 0o600)
	if err := os.Symlink(other, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	naive := filepath.Join(dir, "naive") // a program that copies the file writes through the link
	if err := os.Symlink(naive, path+".copy"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".copy", []byte("damaged"), 0o600); err != nil || !exists(naive) {
		t.Fatalf("%v: the attack has no effect", err)
	}
	f, _, err := state.Open(path)
	if f == nil || err == nil {
		t.Fatalf("Open: %v", err)
	}
	if err := os.Symlink(other, path); err != nil { // while the file is open
		t.Fatal(err)
	}
	if err := f.Write(nil); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the file is %v, %v", info, err)
	}
	_ = f.Close()
	if b, err := os.ReadFile(other); err != nil || string(b) != "other" {
		t.Errorf("the other user's file has %q, %v", b, err)
	}
	_ = os.Remove(path + ".lock")
	if err := os.Symlink(other, path+".lock"); err != nil {
		t.Fatal(err)
	}
	if f, _, err := state.Open(path); err == nil {
		t.Error("locked through a symbolic link")
		_ = f.Close()
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestStateFileOfOtherHosts checks a state file that names other gateways, other
// hosts and mappings that no gateway grants. The library sends requests only to its
// own gateway, and only for this host.
func TestStateFileOfOtherHosts(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	received := make(chan []byte, 100)
	elsewhere := startUDPServer(t, netip.AddrPortFrom(bystander, gw.Addr().Port()), func(_ *net.UDPConn, b []byte, _ netip.AddrPort) {
		received <- bytes.Clone(b)
	})
	_ = canary(t, bystander)
	other := gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.AddrPortFrom(attacker, 8080), External: netip.AddrPortFrom(gw.External(), 6666),
	}
	if err := gw.AddMapping(other); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"another gateway":                 stateFileFor(elsewhere),
		"another host":                    strings.Replace(stateFileFor(gw.Addr()), "127.0.0.1:8080", attacker.String()+":8080", 1),
		"internal port 0":                 strings.Replace(stateFileFor(gw.Addr()), "127.0.0.1:8080", "127.0.0.1:0", 1),
		"another protocol":                strings.Replace(stateFileFor(gw.Addr()), "natpmp", "unknown protocol", 1),
		"host name instead of an address": strings.Replace(stateFileFor(gw.Addr()), gw.Addr().Addr().String(), "gateway.example", 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			writeFile(t, path, content, 0o600)
			if !naiveState(path) {
				t.Fatal("the naive client finds nothing: the attack has no effect")
			}
			gw.ResetStats()
			f := newForwarder(t, gw, forward.Config{StateFile: path, Protocols: []string{"natpmp"}})
			m, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil || m.External().Port() != 8080 {
				t.Errorf("Enable: %v, %v", m, err)
			}
			if err := f.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case b := <-received:
				t.Errorf("another gateway received %x", b)
			default:
			}
			for _, r := range gw.Requests() {
				if len(r.Raw) >= 12 && r.Op != "external address" && (r.Raw[4] != 0x1f || r.Raw[5] != 0x90) {
					t.Errorf("the gateway received %x", r.Raw)
				}
			}
			if table := gw.Table(); len(table) != 1 || table[0].Internal != other.Internal {
				t.Errorf("the gateway has %v", table)
			}
		})
	}
}
