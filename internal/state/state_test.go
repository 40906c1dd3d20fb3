package state_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

var records = []state.Record{
	{Port: 8080, Mapping: backends.Mapping{
		Backend: "pcp", Gateway: netip.MustParseAddrPort("192.168.1.1:5351"), Protocol: backends.TCP,
		Internal: netip.MustParseAddrPort("192.168.1.2:8080"), External: netip.MustParseAddrPort("45.45.45.1:8081"),
		Remote: netip.MustParseAddrPort("45.45.45.9:1"), Description: "a server", Lifetime: time.Hour,
		Granted: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Token: backends.NewToken([]byte{1, 2, 3}),
	}},
	{Port: 9000, Mapping: backends.Mapping{
		Backend: "upnp", Gateway: netip.MustParseAddrPort("[fe80::1%eth0]:5000"), Protocol: backends.UDP,
		Internal: netip.MustParseAddrPort("[2a0c::1]:9000"), External: netip.MustParseAddrPort("[2a0c::1]:9000"),
		Lifetime: backends.Forever, Granted: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}},
	{Port: 8000, Count: 3, Mapping: backends.Mapping{
		Backend: "natpmp", Gateway: netip.MustParseAddrPort("192.168.1.1:5351"), Protocol: backends.TCP,
		Internal: netip.MustParseAddrPort("192.168.1.2:8002"), External: netip.MustParseAddrPort("45.45.45.1:9002"),
		Lifetime: time.Hour, Granted: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}},
}

func open(t *testing.T, path string) (*state.File, []state.Record) {
	t.Helper()
	f, got, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, got
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f, got := open(t, path)
	if len(got) != 0 {
		t.Errorf("a file that does not exist has records: %v", got)
	}
	if f2, _, err := state.Open(path); !errors.Is(err, state.ErrInUse) {
		t.Errorf("opened twice: %v, %v", f2, err)
	}
	for _, want := range [][]state.Record{records, records[:1], {}} {
		if err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f, got = open(t, path)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}, backends.Token{})); diff != "" {
			t.Error(diff)
		}
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if remaining, _ := filepath.Glob(path + "*tmp*"); len(remaining) != 0 {
		t.Errorf("temporary files remain: %v", remaining)
	}
}

// TestFormat checks that the file has the bytes of tokens, that files of earlier versions can
// be read, and that the format does not change.
func TestFormat(t *testing.T) {
	const want = `{"version":1,"mappings":[{"port":8080,"mapping":{"Backend":"pcp","Gateway":"192.168.1.1:5351","Protocol":"tcp",` +
		`"Internal":"192.168.1.2:8080","External":"45.45.45.1:8081","Remote":"45.45.45.9:1","Description":"a server",` +
		`"Lifetime":3600000000000,"Granted":"2026-01-02T03:04:05.000000006Z","Token":"AQID"}},` +
		`{"port":9000,"mapping":{"Backend":"upnp","Gateway":"[fe80::1%eth0]:5000","Protocol":"udp",` +
		`"Internal":"[2a0c::1]:9000","External":"[2a0c::1]:9000","Remote":"","Description":"",` +
		`"Lifetime":9223372036854775807,"Granted":"2026-01-02T03:04:05.000000006Z","Token":null}},` +
		`{"port":8000,"count":3,"mapping":{"Backend":"natpmp","Gateway":"192.168.1.1:5351","Protocol":"tcp",` +
		`"Internal":"192.168.1.2:8002","External":"45.45.45.1:9002","Remote":"","Description":"",` +
		`"Lifetime":3600000000000,"Granted":"2026-01-02T03:04:05.000000006Z","Token":null}}]}`
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	f, got := open(t, path)
	if !slices.Equal(got, records) { // compares tokens too
		t.Errorf("read %v, want %v", got, records)
	}
	if err := f.Write(got); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(b)) != want {
		t.Errorf("written %s, %v, want %s", b, err, want)
	}
}

// TestDamaged checks that a file with invalid contents is set aside, that Open reports it,
// and that the returned File is usable.
func TestDamaged(t *testing.T) {
	good := `{"version":1,"mappings":[{"port":8080,"mapping":{"Backend":"natpmp","Gateway":"192.168.1.1:5351","Protocol":"tcp",` +
		`"Internal":"192.168.1.2:8080","External":"45.45.45.1:8080","Remote":"","Lifetime":1,"Granted":"2026-01-02T03:04:05Z"}}]}`
	for name, content := range map[string]string{
		"empty": "", "cut short": good[:len(good)/2], "not JSON": "\x00\x01\x02", "another version": `{"version":2}`,
		"no version": `{}`, "a list": `[]`, "port 0": strings.Replace(good, `"port":8080`, `"port":0`, 1),
		"a port above 65535":  strings.Replace(good, `"port":8080`, `"port":70000`, 1),
		"no backend":          strings.Replace(good, `"natpmp"`, `""`, 1),
		"protocol 0":          strings.Replace(good, `"tcp"`, `"0"`, 1),
		"internal port 0":     strings.Replace(good, `192.168.1.2:8080`, `192.168.1.2:0`, 1),
		"a negative lifetime": strings.Replace(good, `"Lifetime":1`, `"Lifetime":-1`, 1),
		"below its range":     strings.Replace(good, `"port":8080`, `"port":8081,"count":3`, 1),
		"above its range":     strings.Replace(good, `"port":8080`, `"port":8077,"count":3`, 1),
		"a range past 65535":  strings.Replace(good, `"port":8080`, `"port":8080,"count":60000`, 1),
		"deep nesting":        strings.Repeat(`{"version":`, 20000),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f, got, err := state.Open(path)
			if err == nil || f == nil || len(got) != 0 {
				t.Fatalf("Open: %v, %v, %v; want an empty file and the reason", f, got, err)
			}
			defer f.Close()
			t.Log(err)
			if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != content {
				t.Errorf("set aside: %q, %v", kept, err)
			}
			if err := f.Write(records); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamagedRepeatedly checks that each damaged file, or a directory in its place, gets a
// name of its own.
func TestDamagedRepeatedly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	damage := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setAside := func() {
		t.Helper()
		f, _, err := state.Open(path)
		if err == nil || f == nil {
			t.Fatalf("Open: %v, %v; want a file and the reason", f, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	damage("first")
	setAside()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "inside"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	setAside()
	damage("third")
	setAside()
	for name, want := range map[string]string{
		path + ".damaged": "first", filepath.Join(path+".damaged.2", "inside"): "second", path + ".damaged.3": "third",
	} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestDamagedNamesExhausted checks that Open fails and leaves a damaged file as it is if all
// names are taken, until one is free.
func TestDamagedNamesExhausted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	names := []string{path, path + ".damaged"}
	for n := 2; n <= 100; n++ {
		names = append(names, fmt.Sprint(path, ".damaged.", n))
	}
	for _, name := range names {
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, _, err := state.Open(path); f != nil || !errors.Is(err, fs.ErrExist) {
		t.Errorf("Open: %v, %v; want no file, because all names are taken", f, err)
	}
	for _, name := range names {
		if got, err := os.ReadFile(name); err != nil || string(got) != name {
			t.Errorf("%s has %q, %v; want it unchanged", name, got, err)
		}
	}
	if err := os.Remove(names[100]); err != nil {
		t.Fatal(err)
	}
	f, _, err := state.Open(path)
	if f == nil || err == nil {
		t.Fatalf("Open with a free name: %v, %v; want a file and the reason", f, err)
	}
	defer f.Close()
	if got, err := os.ReadFile(names[100]); err != nil || string(got) != path {
		t.Errorf("%s has %q, %v; want the damaged file", names[100], got, err)
	}
}

func TestUnsafeFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes and links differ on Windows")
	}
	dir := t.TempDir()
	target := filepath.Join(dir, "theirs")
	if err := os.WriteFile(target, []byte(`{"version":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink(target, path) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"writable by others": func(path string) error {
			return errors.Join(os.WriteFile(path, []byte(`{"version":1}`), 0o600), os.Chmod(path, 0o666))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			f, _, err := state.Open(path)
			if err == nil || f == nil {
				t.Fatalf("Open: %v, %v; want a file and the reason", f, err)
			}
			defer f.Close()
			if err := f.Write(records); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(target); err != nil || string(b) != `{"version":1}` {
				t.Errorf("the target of the link now has %q, %v", b, err)
			}
		})
	}
}

// TestReadOnly checks that Open and Write fail if the directory does not exist or cannot be
// written.
func TestReadOnly(t *testing.T) {
	if _, _, err := state.Open(filepath.Join(t.TempDir(), "no", "such", "directory", "state")); err == nil {
		t.Error("opened in a directory that does not exist")
	}
	if os.Getuid() == 0 || runtime.GOOS == "windows" {
		t.Skip("root can write everywhere")
	}
	dir := t.TempDir()
	f, _ := open(t, filepath.Join(dir, "state"))
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := f.Write(records); err == nil {
		t.Error("written to a read-only directory")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"version":1,"mappings":[{"port":1,"mapping":{"Backend":"x","Protocol":"tcp","Internal":"1.1.1.1:1","External":"1.1.1.1:1","Lifetime":1}}]}`))
	f.Add([]byte(`{"version":1}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "state")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, got, err := state.Open(path)
		if file == nil {
			t.Fatal(err)
		}
		defer file.Close()
		_ = os.Remove(path + ".damaged") // otherwise all names would be taken
		for _, r := range got {
			if r.Mapping.Check() != nil || r.Port == 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}
