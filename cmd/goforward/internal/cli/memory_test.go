package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
)

// memoryApp returns an app with a memory file in a directory that does not exist yet.
func memoryApp(t *testing.T) (*app, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state", "goforward", "gateways.json")
	a := newApp(io.Discard, io.Discard)
	a.memoryFile = func() (string, error) { return path, nil }
	return a, path
}

// gatewayRowOf returns a row for the gateway with a number.
func gatewayRowOf(n int) rememberedGateway {
	addr := netip.AddrFrom4([4]byte{192, 168, 1, byte(n)})
	return rememberedGateway{[]forward.Choice{{Gateway: netip.AddrPortFrom(addr, 0), Protocol: "natpmp"}}, nil, time.Now().UTC().Truncate(time.Second)}
}

func writeMemory(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func memoryText(t *testing.T, rows ...rememberedGateway) string {
	t.Helper()
	text, err := json.Marshal(memory{memoryVersion, rows})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestMemorySaved checks the mode of the file and its directory, and that no other file
// remains.
func TestMemorySaved(t *testing.T) {
	t.Parallel()
	a, path := memoryApp(t)
	row := gatewayRowOf(1)
	pcp := row.Choices[0]
	pcp.Protocol = "pcp"
	row.Choices[0].Protocol, row.Choices[0].URL = "upnp", "http://192.168.1.1:5000/rootDesc.xml"
	row.Choices, row.Backends = append(row.Choices, pcp), []string{"upnp", "pcp"}
	for range 2 { // the second call replaces the file
		if err := saveMemory(path, []rememberedGateway{row}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := a.loadMemory(path)
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Choices, row.Choices) || !slices.Equal(got[0].Backends, row.Backends) || !got[0].Asked.Equal(row.Asked) {
		t.Errorf("%+v, %v; want %+v", got, err, row)
	}
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
			}
		}
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v; want one file", files, err)
	}
}

// TestMemoryIgnored checks that a file that is not the user's own, or has other contents, has
// no effect, and that remembering replaces it without following a link.
func TestMemoryIgnored(t *testing.T) {
	t.Parallel()
	valid := memoryText(t, gatewayRowOf(9))
	for name, prepare := range map[string]func(t *testing.T, path string) error{
		"missing":    func(*testing.T, string) error { return nil },
		"empty":      func(t *testing.T, path string) error { writeMemory(t, path, ""); return nil },
		"damaged":    func(t *testing.T, path string) error { writeMemory(t, path, valid[:len(valid)-9]); return nil },
		"other type": func(t *testing.T, path string) error { writeMemory(t, path, `["192.168.1.1"]`); return nil },
		"other version": func(t *testing.T, path string) error {
			writeMemory(t, path, strings.Replace(valid, `"version":1`, `"version":2`, 1))
			return nil
		},
		"too large": func(t *testing.T, path string) error {
			writeMemory(t, path, valid+strings.Repeat(" ", maxMemorySize))
			return nil
		},
		"link": func(t *testing.T, path string) error {
			writeMemory(t, path+".target", valid)
			return os.Symlink(path+".target", path)
		},
		"writable by others": func(t *testing.T, path string) error {
			writeMemory(t, path, valid)
			return os.Chmod(path, 0o622)
		},
		"other owner": func(t *testing.T, path string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file to another user")
			}
			writeMemory(t, path, valid)
			return os.Lchown(path, 65534, 65534)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if runtime.GOOS == "windows" && slices.Contains([]string{"link", "writable by others"}, name) {
				t.Skip("Windows has no modes, and needs a privilege to create links")
			}
			a, path := memoryApp(t)
			if err := prepare(t, path); err != nil {
				t.Fatal(err)
			}
			if got := a.remembered(); got != nil {
				t.Errorf("%v is used", got)
			}
			a.recordChoices(gatewayRowOf(1).Choices)
			if got := a.remembered(); len(got) != 1 || got[0] != gatewayRowOf(1).Choices[0] {
				t.Errorf("%v, want only the recorded gateway", got)
			}
			if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%v, %v; want a regular file", info, err)
			}
			if text, err := os.ReadFile(path + ".target"); err == nil && string(text) != valid {
				t.Errorf("the target of the link has changed: %s", text)
			}
		})
	}
}

// isUsed reports whether the first of the choices is the one of a row.
func isUsed(row rememberedGateway, choices []forward.Choice) bool {
	return len(row.Choices) > 0 && choices[0] == row.Choices[0]
}

// TestMemoryRows checks which rows of a valid file are used.
func TestMemoryRows(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*rememberedGateway)
		want   bool
	}{
		"complete":           {func(*rememberedGateway) {}, true},
		"two protocols":      {func(g *rememberedGateway) { g.Choices = append(g.Choices, g.Choices...) }, true},
		"no protocol":        {func(g *rememberedGateway) { g.Choices = nil }, false},
		"too many protocols": {func(g *rememberedGateway) { g.Choices = slices.Repeat(g.Choices, 4) }, false},
		"two gateways":       {func(g *rememberedGateway) { g.Choices = append(g.Choices, gatewayRowOf(3).Choices...) }, false},
		"with a URL": {func(g *rememberedGateway) {
			g.Choices[0].Protocol, g.Choices[0].URL = "upnp", "http://192.168.1.1:5000/x"
		}, true},
		"no address":          {func(g *rememberedGateway) { g.Choices[0].Gateway = netip.AddrPort{} }, false},
		"unspecified address": {func(g *rememberedGateway) { g.Choices[0].Gateway = netip.MustParseAddrPort("0.0.0.0:5351") }, false},
		"multicast address":   {func(g *rememberedGateway) { g.Choices[0].Gateway = netip.MustParseAddrPort("224.0.0.1:5351") }, false},
		"unknown protocol":    {func(g *rememberedGateway) { g.Choices[0].Protocol = "telnet" }, false},
		"unknown backend":     {func(g *rememberedGateway) { g.Backends = []string{"telnet"} }, false},
		"URL of a name":       {func(g *rememberedGateway) { g.Choices[0].Protocol, g.Choices[0].URL = "upnp", "http://example.com/x" }, false},
		"file URL":            {func(g *rememberedGateway) { g.Choices[0].Protocol, g.Choices[0].URL = "upnp", "file:///etc/passwd" }, false},
		"long URL": {func(g *rememberedGateway) {
			g.Choices[0].URL = "http://192.168.1.1/" + strings.Repeat("x", maxTextSize)
		}, false},
		"long interface": {func(g *rememberedGateway) { g.Choices[0].Interface = strings.Repeat("x", maxTextSize+1) }, false},
		"old":            {func(g *rememberedGateway) { g.Asked = time.Now().Add(-forgetAfter - time.Hour) }, false},
		"not so old":     {func(g *rememberedGateway) { g.Asked = time.Now().Add(-forgetAfter + time.Hour) }, true},
		"far future":     {func(g *rememberedGateway) { g.Asked = time.Now().Add(forgetAfter + time.Hour) }, false},
		"no time":        {func(g *rememberedGateway) { g.Asked = time.Time{} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, path := memoryApp(t)
			row := gatewayRowOf(1)
			test.change(&row)
			writeMemory(t, path, memoryText(t, row, gatewayRowOf(2)))
			if got := a.remembered(); len(got) == 0 || isUsed(row, got) != test.want || got[len(got)-1] != gatewayRowOf(2).Choices[0] {
				t.Errorf("%v; the first row must be used: %v", got, test.want)
			}
		})
	}
}

// TestMemoryBackends checks that a choice among some protocols does not apply to a run with
// others.
func TestMemoryBackends(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ recorded, protocol, now, want string }{
		{"", "natpmp", "", "yes"},
		{"", "natpmp", "natpmp", "yes"},
		{"", "natpmp", "pcp", "no"},
		{"", "natpmp", "upnp,natpmp", "no"}, // the user prefers UPnP
		{"upnp", "upnp", "upnp", "yes"},
		{"upnp", "upnp", "", "no"}, // the gateway may support NAT-PMP too
		{"upnp,pcp", "pcp", "upnp,pcp", "yes"},
		{"upnp,pcp", "pcp", "pcp,upnp", "no"},
	} {
		a, path := memoryApp(t)
		row := gatewayRowOf(1)
		row.Choices[0].Protocol, row.Backends = test.protocol, splitNames(test.recorded)
		writeMemory(t, path, memoryText(t, row))
		a.settings.backends = splitNames(test.now)
		if got := yesNo(a.remembered() != nil); got != test.want {
			t.Errorf("--backend %q after %q, which chose %s: applies: %s, want %s", test.now, test.recorded, test.protocol, got, test.want)
		}
		a.settings.fresh = true
		if got := a.remembered(); got != nil {
			t.Errorf("--fresh: %v", got)
		}
	}
}

func splitNames(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// TestMemoryWrites checks that the file is written only if it would change, that the last used
// gateways remain, and that two choices about a gateway have one row.
func TestMemoryWrites(t *testing.T) {
	t.Parallel()
	a, path := memoryApp(t)
	var old []rememberedGateway
	for n := range maxRemembered {
		old = append(old, gatewayRowOf(n+1))
	}
	isWritten := func(n int, protocol string) bool {
		t.Helper()
		text := memoryText(t, old...) + "\n\n\n" // a text that saveMemory does not write
		writeMemory(t, path, text)
		c := gatewayRowOf(n).Choices
		c[0].Protocol = protocol
		a.recordChoices(c)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(got) != text
	}
	gateways := func() (addrs []string) {
		for _, c := range a.remembered() {
			addrs = append(addrs, c.Gateway.Addr().String()+" "+c.Protocol)
		}
		return addrs
	}
	if isWritten(1, "natpmp") || isWritten(2, "natpmp") {
		t.Error("the file is written although nothing has changed")
	}
	if !isWritten(3, "pcp") || gateways()[0] != "192.168.1.3 pcp" || slices.Contains(gateways(), "192.168.1.3 natpmp") {
		t.Errorf("%q; want the gateway with the other protocol first, and only once", gateways())
	}
	if !isWritten(100, "pcp") || gateways()[0] != "192.168.1.100 pcp" || len(gateways()) != maxRemembered ||
		slices.Contains(gateways(), fmt.Sprintf("192.168.1.%d natpmp", maxRemembered)) {
		t.Errorf("%q; want the new gateway first, and the last one dropped", gateways())
	}
	var written memory
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &written) != nil || len(written.Gateways) != maxRemembered {
		t.Errorf("%v; the file has %d gateways, want %d", err, len(written.Gateways), maxRemembered)
	}
	if isWritten(101, "telnet") {
		t.Error("an unusable choice is recorded")
	}
}

// TestMemoryAtOnce checks that programs that write at the same time leave a valid file, and that
// each gateway is recorded when they run one after another.
func TestMemoryAtOnce(t *testing.T) {
	t.Parallel()
	_, path := memoryApp(t)
	record := func(n int) {
		a := newApp(io.Discard, io.Discard)
		a.memoryFile = func() (string, error) { return path, nil }
		a.recordChoices(gatewayRowOf(n).Choices)
		if got, err := a.loadMemory(path); err != nil || len(got) == 0 {
			t.Errorf("%v, %v; want a valid file", got, err)
		}
	}
	const programs = 12
	var work sync.WaitGroup
	for n := range programs {
		work.Go(func() {
			for range 20 {
				record(n + 1)
			}
		})
	}
	work.Wait()
	for n := range programs {
		record(n + 1)
	}
	a, _ := memoryApp(t)
	if got, err := a.loadMemory(path); err != nil || len(got) != programs {
		t.Errorf("%d gateways, %v; want %d", len(got), err, programs)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v; want one file", files, err)
	}
}

// TestMemoryUnwritable checks that nothing happens if the file cannot be written, and that the
// reason is logged only with -v.
func TestMemoryUnwritable(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]func(t *testing.T) (string, error){
		"no directory": func(*testing.T) (string, error) { return "", errors.New("HOME is not set") },
		"a file in place of the directory": func(t *testing.T) (string, error) {
			path := filepath.Join(t.TempDir(), "file")
			return filepath.Join(path, "goforward", "gateways.json"), os.WriteFile(path, nil, 0o600)
		},
		"a directory in place of the file": func(t *testing.T) (string, error) {
			path := filepath.Join(t.TempDir(), "gateways.json")
			return path, os.MkdirAll(filepath.Join(path, "x"), 0o700)
		},
		"a directory of another user": func(t *testing.T) (string, error) {
			dir := t.TempDir()
			if os.Geteuid() != 0 {
				t.Skip("only root can give a directory to another user")
			}
			return filepath.Join(dir, "goforward", "gateways.json"), os.Chown(dir, 65534, 65534)
		},
		"a read-only directory": func(t *testing.T) (string, error) {
			dir := t.TempDir()
			if os.Geteuid() == 0 || runtime.GOOS == "windows" {
				t.Skip("no directory is read-only for root")
			}
			return filepath.Join(dir, "goforward", "gateways.json"), os.Chmod(dir, 0o500)
		},
		"a directory that takes no files": func(t *testing.T) (string, error) {
			if _, err := os.Stat("/proc/self/fd"); err != nil {
				t.Skip("there is no /proc")
			}
			return "/proc/self/fd/goforward/gateways.json", nil // no file can be created there
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := file(t)
			for verbosity := range 2 {
				var stderr bytes.Buffer
				a := newApp(io.Discard, &stderr)
				a.memoryFile = func() (string, error) { return path, err }
				a.settings.verbosity = verbosity
				_ = a.remembered()
				a.recordChoices(gatewayRowOf(1).Choices)
				if got := strings.Contains(stderr.String(), "protocols of gateways cannot be"); got != (verbosity > 0) || verbosity == 0 && stderr.Len() > 0 {
					t.Errorf("verbosity %d: %s", verbosity, stderr.String())
				}
			}
			if files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".gateways-*")); len(files) > 0 {
				t.Errorf("temporary files remain: %q", files)
			}
		})
	}
}
