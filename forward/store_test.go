package forward_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// programRuns represents a program that is started several times with one state file.
type programRuns struct {
	t      *testing.T
	gw     *gatewaytest.Gateway
	config forward.Config
}

// newRuns starts a gateway, and returns a program that uses it.
func newRuns(t *testing.T, router gatewaytest.Config, config forward.Config) *programRuns {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	config.Gateway, config.Test.SSDP = gw.Addr(), gw.SSDP()
	config.Test.Announce, config.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:0")
	if config.StateFile == "" {
		config.StateFile = filepath.Join(t.TempDir(), "state")
	}
	return &programRuns{t, gw, config}
}

// start returns the Forwarder of the next run.
func (r *programRuns) start() *forward.Forwarder {
	r.t.Helper()
	f, err := forward.New(&r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = f.Close() })
	return f
}

// awaitStateFile waits until the content of the state file matches.
func (r *programRuns) awaitStateFile(match func(content string) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		b, _ := os.ReadFile(r.config.StateFile)
		if match(string(b)) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the state file has %s", b)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// containsAll returns a function that reports whether a content contains all texts.
func containsAll(texts ...string) func(string) bool {
	return func(content string) bool {
		for _, text := range texts {
			if !strings.Contains(content, text) {
				return false
			}
		}
		return true
	}
}

// TestStateFile checks that a program takes its mappings over after a crash, in place and
// with the same external ports, even if the preferred port is free again.
func TestStateFile(t *testing.T) {
	for name, router := range map[string]gatewaytest.Config{
		"natpmp": {},
		"pcp":    {Protocols: []string{"pcp"}},
		"upnp":   {Protocols: []string{"upnp"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns(t, router, forward.Config{})
			foreign := gatewaytest.Entry{
				Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:80"),
				External: netip.AddrPortFrom(r.gw.External(), 8080), Remaining: time.Hour,
			}
			if err := r.gw.AddMapping(foreign); err != nil {
				t.Fatal(err)
			}
			first := r.start()
			m, err := first.Enable(t.Context(), forward.TCP(8080))
			if err != nil || m.Backend() != name {
				t.Fatal(m, err)
			}
			before := m.External()
			r.awaitStateFile(containsAll(`"External":"` + before.String() + `"`))
			first.Crash()
			r.gw.RemoveMapping(backends.TCP, 8080)

			m, err = r.start().Enable(t.Context(), forward.TCP(8080))
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range r.gw.Requests() {
				if q.Op == "unmap" && q.Service == name { // the probe of PCP deletes a mapping that does not exist
					t.Errorf("the mapping was deleted and not taken over in place: %s", q.Name())
				}
			}
			if m.External() != before || m.Backend() != name || len(r.gw.Table()) != 1 {
				t.Errorf("External %v by %s, want %v; the gateway has %v", m.External(), m.Backend(), before, r.gw.Table())
			}
		})
	}
}

// TestStateFileNotEnabledAgain checks that recorded mappings that are not enabled again
// are deleted, and that a mapping with Once is kept.
func TestStateFileNotEnabledAgain(t *testing.T) {
	forward.SetRestoreGrace(t, 50*time.Millisecond)
	r := newRuns(t, gatewaytest.Config{}, forward.Config{})
	first := r.start()
	for _, port := range []uint16{8080, 8081, 8082} {
		if _, err := first.Enable(t.Context(), forward.TCP(port)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := first.Enable(t.Context(), forward.TCP(8083), forward.Once()); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(containsAll(":8080", ":8081", ":8082"))
	first.Crash()

	second := r.start()
	if _, err := second.Enable(t.Context(), forward.TCP(8081)); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(func(content string) bool { return containsAll(":8081")(content) && !strings.Contains(content, ":8080") })
	var ports []uint16
	for _, e := range r.gw.Table() {
		ports = append(ports, e.External.Port())
	}
	if len(ports) != 2 || ports[0] != 8081 || ports[1] != 8083 { // the mapping with Once stays until its lifetime ends
		t.Errorf("the gateway forwards %v", ports)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(func(content string) bool { return !strings.Contains(content, ":8081") })
}

// TestStateFileShared checks that a second Forwarder works without the file while the
// first uses it.
func TestStateFileShared(t *testing.T) {
	r := newRuns(t, gatewaytest.Config{}, forward.Config{})
	if _, err := r.start().Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(containsAll(":8080"))
	if _, err := r.start().Enable(t.Context(), forward.TCP(9090)); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(func(content string) bool { return !strings.Contains(content, ":9090") })
	if len(r.gw.Table()) != 2 {
		t.Errorf("the gateway has %v", r.gw.Table())
	}
}

// TestStateFileDamaged checks that calls succeed if the state file has invalid contents
// or cannot be created.
func TestStateFileDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, []byte("{nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRuns(t, gatewaytest.Config{}, forward.Config{StateFile: path})
	if _, err := r.start().Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	r.awaitStateFile(containsAll(":8080"))
	if b, err := os.ReadFile(path + ".damaged"); err != nil || string(b) != "{nonsense" {
		t.Errorf("renamed file: %q, %v", b, err)
	}
	for _, unusable := range []string{filepath.Join(path, "below a file"), filepath.Join(t.TempDir(), "no", "such")} {
		r := newRuns(t, gatewaytest.Config{}, forward.Config{StateFile: unusable})
		if _, err := r.start().Enable(t.Context(), forward.TCP(8081)); err != nil {
			t.Errorf("with the state file %s: %v", unusable, err)
		}
	}
}

// TestStateFileReleased checks that a Forwarder that finds its state file in use takes
// the file as soon as it is released, and records its mappings.
func TestStateFileReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		first, second := newForwarder(t, forward.Config{StateFile: path}, gw), newForwarder(t, forward.Config{StateFile: path}, gw)
		defer first.Close()
		defer second.Close()
		enable := func(f *forward.Forwarder, port uint16) {
			t.Helper()
			if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
				t.Fatal(err)
			}
		}
		enable(first, 8080)
		enable(second, 9090) // while the first Forwarder uses the file
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		enable(second, 9191)
		time.Sleep(10 * time.Minute)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !containsAll(":9090", ":9191")(string(content)) {
			t.Errorf("ten minutes after the file was released it has %s\nwant the mappings of the second Forwarder, 9090 and 9191", content)
		}
	})
}

// TestStateFileDamagedTwice checks that each damaged file is renamed to a different name.
func TestStateFileDamagedTwice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	damaged := []string{"{the first", "{the second", "{the third"}
	for _, content := range damaged {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f := newForwarder(t, forward.Config{StateFile: path}, newFakeGateway())
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

// TestStateFileOtherPeer checks that a recorded mapping for all peers is not taken over
// for a mapping that admits only one peer.
func TestStateFileOtherPeer(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := forward.Config{Protocols: []string{"pcp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newLoopbackForwarder(t, c)
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), ":8080") })
	f.Crash()
	f = newLoopbackForwarder(t, c)
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.From(netip.MustParseAddrPort("45.45.45.9:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", m.Grants())
	for _, e := range gw.Table() {
		if len(e.Filters) == 0 {
			t.Errorf("the gateway admits all peers, want only 45.45.45.9: %+v", e)
		}
	}
}

// TestStateFileOtherInternalPort checks that a recorded mapping with another internal
// port does not prevent a mapping.
func TestStateFileOtherInternalPort(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:9"), External: netip.AddrPortFrom(gw.External(), 8080)}); err != nil {
		t.Fatal(err)
	}
	c := forward.Config{Protocols: []string{"pcp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newLoopbackForwarder(t, c)
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.SamePort())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(m.Grants())
	eventually(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), `"port":8080`) })
	f.Crash()
	f = newLoopbackForwarder(t, c)
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Errorf("Enable(TCP(8080)): %v", err)
	}
}

// TestStateFileEnableDuringCleanup enables a recorded mapping at the moment when it is
// about to be deleted because it was not enabled again.
func TestStateFileEnableDuringCleanup(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := forward.Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newLoopbackForwarder(t, c)
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), ":8080") })
	f.Crash()
	forward.SetRestoreGrace(t, 20*time.Millisecond)
	f = newLoopbackForwarder(t, c)
	hold := make(chan struct{})
	before := countRequests(gw, isMap)
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: hold})
	var m *forward.Mapping
	enabled := make(chan error, 1)
	go func() { var err error; m, err = f.Enable(t.Context(), forward.TCP(8080)); enabled <- err }()
	if _, err := gw.AwaitRequests(t.Context(), before+1, isMap); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond) // longer than recorded mappings are kept
	close(hold)
	if err := <-enabled; err != nil {
		t.Fatal(err)
	}
	if _, err := f.Gateway(t.Context()); err != nil {
		t.Error(err)
	}
	<-time.After(100 * time.Millisecond)
	if len(gw.Table()) != 1 || countRequests(gw, isUnmap) != 0 {
		t.Errorf("the mapping reports %v, next attempt in %v; the gateway has %v", m, time.Until(m.Status().NextAttempt), gw.Table())
	}
}

// TestStateFileAfterCloseTimeout checks that the state file records the mappings that
// Close could not delete in time.
func TestStateFileAfterCloseTimeout(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := forward.Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newLoopbackForwarder(t, c)
	for p := range uint16(20) {
		if _, err := f.Enable(t.Context(), forward.TCP(8080+p)); err != nil {
			t.Fatal(err)
		}
	}
	gw.Inject(gatewaytest.Fault{Drop: true})
	_ = f.Close()
	b, _ := os.ReadFile(c.StateFile)
	if n := strings.Count(string(b), `"Internal"`); n != len(gw.Table()) {
		t.Errorf("the gateway has %d mappings, the state file %d", len(gw.Table()), n)
	}
}
