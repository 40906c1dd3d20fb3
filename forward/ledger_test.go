package forward_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// runs is a program that is started again and again, with one state file.
type runs struct {
	t      *testing.T
	gw     *gatewaytest.Gateway
	config forward.Config
}

func newRuns(t *testing.T, router gatewaytest.Config, config forward.Config) *runs {
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
	return &runs{t, gw, config}
}

func (r *runs) start() *forward.Forwarder {
	r.t.Helper()
	f, err := forward.New(&r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = f.Close() })
	return f
}

// await waits until the state file is as it has to be.
func (r *runs) await(is func(content string) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		b, _ := os.ReadFile(r.config.StateFile)
		if is(string(b)) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the state file has %s", b)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func holds(texts ...string) func(string) bool {
	return func(content string) bool {
		for _, text := range texts {
			if !strings.Contains(content, text) {
				return false
			}
		}
		return true
	}
}

// After a crash, a program takes over what it had: with the port that it had,
// although the one that it wished for is free by now, and in place.
func TestStateFile(t *testing.T) {
	for name, router := range map[string]gatewaytest.Config{
		"natpmp": {},
		"pcp":    {Protocols: []string{"pcp"}},
		"upnp":   {Protocols: []string{"upnp"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns(t, router, forward.Config{})
			theirs := gatewaytest.Entry{
				Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:80"),
				External: netip.AddrPortFrom(r.gw.External(), 8080), Remaining: time.Hour,
			}
			if err := r.gw.AddMapping(theirs); err != nil {
				t.Fatal(err)
			}
			first := r.start()
			m, err := first.Enable(t.Context(), forward.TCP(8080))
			if err != nil || m.Backend() != name {
				t.Fatal(m, err)
			}
			had := m.External()
			r.await(holds(`"External":"` + had.String() + `"`))
			first.Crash()
			r.gw.RemoveMapping(backends.TCP, 8080)

			m, err = r.start().Enable(t.Context(), forward.TCP(8080))
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range r.gw.Requests() {
				if q.Op == "unmap" {
					t.Errorf("taken away first, and not taken over in place: %s", q.Name())
				}
			}
			if m.External() != had || m.Backend() != name || len(r.gw.Table()) != 1 {
				t.Errorf("now %v by %s, had %v; the gateway has %v", m.External(), m.Backend(), had, r.gw.Table())
			}
		})
	}
}

// What is not enabled again is taken away, and what is of no gateway at hand is
// kept in mind; so is what could not be taken away.
func TestStateFileUnwanted(t *testing.T) {
	forward.SetWantedWithin(t, 50*time.Millisecond)
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
	r.await(holds(":8080", ":8081", ":8082"))
	first.Crash()

	second := r.start()
	if _, err := second.Enable(t.Context(), forward.TCP(8081)); err != nil {
		t.Fatal(err)
	}
	r.await(func(content string) bool { return holds(":8081")(content) && !strings.Contains(content, ":8080") })
	var ports []uint16
	for _, e := range r.gw.Table() {
		ports = append(ports, e.External.Port())
	}
	if len(ports) != 2 || ports[0] != 8081 || ports[1] != 8083 { // that of Once stays for its lifetime
		t.Errorf("the gateway forwards %v", ports)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	r.await(func(content string) bool { return !strings.Contains(content, ":8081") })
}

// One Forwarder has the file; a second does without.
func TestStateFileShared(t *testing.T) {
	r := newRuns(t, gatewaytest.Config{}, forward.Config{})
	if _, err := r.start().Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	r.await(holds(":8080"))
	if _, err := r.start().Enable(t.Context(), forward.TCP(9090)); err != nil {
		t.Fatal(err)
	}
	r.await(func(content string) bool { return !strings.Contains(content, ":9090") })
	if len(r.gw.Table()) != 2 {
		t.Errorf("the gateway has %v", r.gw.Table())
	}
}

// A file that makes no sense is no reason to fail.
func TestStateFileDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, []byte("{nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRuns(t, gatewaytest.Config{}, forward.Config{StateFile: path})
	if _, err := r.start().Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	r.await(holds(":8080"))
	if b, err := os.ReadFile(path + ".damaged"); err != nil || string(b) != "{nonsense" {
		t.Errorf("set aside: %q, %v", b, err)
	}
	for _, nowhere := range []string{filepath.Join(path, "below a file"), filepath.Join(t.TempDir(), "no", "such")} {
		r := newRuns(t, gatewaytest.Config{}, forward.Config{StateFile: nowhere})
		if _, err := r.start().Enable(t.Context(), forward.TCP(8081)); err != nil {
			t.Errorf("with the state file %s: %v", nowhere, err)
		}
	}
}
