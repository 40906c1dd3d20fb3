package forward_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/holders"
)

// programEnv has the config of a program that enables one mapping, as JSON.
const programEnv = "GOFORWARD_TEST_PROGRAM"

// programConfig describes a program that holds TCP port 8080.
type programConfig struct {
	Gateway   netip.AddrPort
	Test      forward.TestNetwork
	Protocol  string
	External  uint16
	StateFile string
	Logs      bool // the program prints at its end how often it logged that it does not know of other programs
}

// config returns the config of the program's Forwarder.
func (p *programConfig) config() forward.Config {
	return forward.Config{
		Gateway: p.Gateway, Test: p.Test, Protocols: []string{p.Protocol}, StateFile: p.StateFile,
		NonceKey: []byte("the key of the user"),
	}
}

// runProgram enables a mapping, prints its external port, and closes it when the input ends.
// It then prints the result.
func runProgram(text string) {
	var p programConfig
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	var logged strings.Builder
	config := p.config()
	config.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	f, err := forward.New(&config)
	if err != nil {
		panic(err)
	}
	m, err := f.Enable(context.Background(), forward.TCP(8080), forward.External(p.External))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.External().Port())
	_, _ = io.Copy(io.Discard, os.Stdin)
	fmt.Println(m.Close(), f.Close())
	if p.Logs {
		fmt.Println(strings.Count(logged.String(), "even if another program of this user holds them"))
	}
}

// program is a process that holds TCP port 8080.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startProgram starts a program. The variables of env are added to its environment.
func startProgram(t *testing.T, p programConfig, env ...string) *program {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), programEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	cmd.Env = append(append(cmd.Env, runtimeEnvironment(programsDir)...), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := &program{t, cmd, in, bufio.NewScanner(out)}
	t.Cleanup(started.kill)
	return started
}

// line waits for the next line of the program's output.
func (p *program) line(want string) {
	p.t.Helper()
	p.out.Scan()
	if got := p.out.Text(); got != want {
		p.t.Fatalf("the program printed %q, want %q", got, want)
	}
}

// end makes the program close its mapping, and waits for that.
func (p *program) end() {
	p.t.Helper()
	_ = p.in.Close()
	p.line("<nil> <nil>")
}

// kill ends the program without a chance to close its mapping.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// skipWithoutHolders skips a test on systems that cannot count the holders of a mapping.
func skipWithoutHolders(t *testing.T) {
	t.Helper()
	if _, err := holders.Default(); err != nil {
		t.Skip(err)
	}
}

// programOn returns the config of a program that uses one protocol of a gateway.
func programOn(gw *gatewaytest.Gateway, protocol string) programConfig {
	c := gw.Config()
	return programConfig{Gateway: c.Gateway, Test: c.Test, Protocol: protocol, External: 8080}
}

// checkTable compares the external ports of the gateway's table.
func checkTable(t *testing.T, gw *gatewaytest.Gateway, when string, want ...uint16) {
	t.Helper()
	var got []uint16
	for _, e := range gw.Table() {
		got = append(got, e.External.Port())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: the gateway forwards ports %v, want %v", when, got, want)
	}
}

// TestTwoPrograms checks that a mapping which two programs of one user hold stays on the
// gateway until the last one ends, and that a killed program is no holder.
func TestTwoPrograms(t *testing.T) {
	skipWithoutHolders(t)
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			gw := startGateway(t, gatewaytest.Config{})
			config := programOn(gw, protocol)
			start := func() *program {
				p := startProgram(t, config)
				p.line("8080")
				return p
			}
			first, second := start(), start()
			first.end()
			checkTable(t, gw, "one of two programs ended", 8080)
			second.end()
			checkTable(t, gw, "both programs ended")

			killed, last := start(), start()
			killed.kill()
			last.end()
			checkTable(t, gw, "one program was killed, and the other one ended")
		})
	}
}

// TestProgramsOfOtherProtocols checks that the end of a program does not delete the mapping
// of another program that uses another protocol. A NAT-PMP request can delete all mappings of
// an internal port.
func TestProgramsOfOtherProtocols(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	for _, protocols := range [][2]string{{"natpmp", "upnp"}, {"upnp", "natpmp"}} {
		gw := startGateway(t, gatewaytest.Config{})
		first := startProgram(t, programOn(gw, protocols[0]))
		first.line("8080")
		second := startProgram(t, programOn(gw, protocols[1]))
		second.out.Scan()
		port := second.out.Text()
		first.end()
		if !slices.ContainsFunc(gw.Table(), func(e gatewaytest.Entry) bool { return fmt.Sprint(e.External.Port()) == port }) {
			t.Errorf("the end of the %s program deleted port %s of the %s program", protocols[0], port, protocols[1])
		}
		second.end()
	}
}

// TestProgramsWithOtherPorts checks that two programs that map different external ports to
// one internal port by UPnP delete their own mapping each.
func TestProgramsWithOtherPorts(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	config := programOn(gw, "upnp")
	first := startProgram(t, config)
	first.line("8080")
	config.External = 9090
	second := startProgram(t, config)
	second.line("9090")
	checkTable(t, gw, "both programs run", 8080, 9090)
	first.end()
	checkTable(t, gw, "the first program ended", 9090)
	second.end()
	checkTable(t, gw, "both programs ended")
}

// TestProgramStartsDuringDeletion checks that a program which starts while another one
// deletes the same mapping requests it after the deletion.
func TestProgramStartsDuringDeletion(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	config := programOn(gw, "natpmp")
	first := startProgram(t, config)
	first.line("8080")
	release := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Op == "unmap" }, Hold: release})
	await := func(ctx context.Context, op string) error {
		_, err := gw.AwaitRequests(ctx, 1, func(q gatewaytest.Request) bool { return q.Op == op })
		return err
	}
	gw.ResetStats()
	_ = first.in.Close()
	if err := await(testContext(t), "unmap"); err != nil {
		t.Fatal(err)
	}
	second := startProgram(t, config)
	if err := await(testContext(t), "external address"); err != nil { // the probe of the second program
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := await(ctx, "map"); err == nil {
		t.Error("the second program requested the mapping during the deletion")
	}
	close(release)
	second.line("8080")
	first.end()
	checkTable(t, gw, "the first program ended", 8080)
	second.end()
	checkTable(t, gw, "both programs ended")
}

// TestProgramOfOtherUser documents a limit: programs that share no directory, such as those of
// two users, do not know of each other.
func TestProgramOfOtherUser(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	first := startProgram(t, programOn(gw, "natpmp"))
	second := startProgram(t, programOn(gw, "natpmp"), runtimeEnvironment(t.TempDir())...)
	first.line("8080")
	second.line("8080")
	second.end()
	checkTable(t, gw, "the program of another user ended")
	first.end()
}

// TestRestoredMappingWithOtherPort checks that a mapping of an earlier run is not deleted to
// request another external port if another program holds it.
func TestRestoredMappingWithOtherPort(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	other := programOn(gw, "natpmp")
	config := runAndKill(t, other)
	second := startProgram(t, other)
	second.line("8080")
	f := newLoopbackForwarder(t, config.config())
	if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.External(9090)); err != nil {
		t.Fatal(err)
	}
	checkTable(t, gw, "another external port was requested", 8080)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	checkTable(t, gw, "the program with the state file ended", 8080)
	second.end()
	checkTable(t, gw, "both programs ended")
}

// TestProgramReleasesMapping checks that a program which has released its mapping, and still
// runs, does not keep another program from deleting it.
func TestProgramReleasesMapping(t *testing.T) {
	skipWithoutHolders(t)
	for name, release := range map[string]func(*forward.Forwarder, *forward.Mapping) error{
		"Mapping.Close":   func(_ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		"Mapping.Leave":   func(_ *forward.Forwarder, m *forward.Mapping) error { m.Leave(); return nil },
		"Forwarder.Close": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
		"Client.Discard":  func(f *forward.Forwarder, _ *forward.Mapping) error { f.Crash(); return nil },
		"no reply": func(f *forward.Forwarder, m *forward.Mapping) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			_ = m.Shutdown(ctx)
			return nil
		},
	} {
		for _, isHeld := range []bool{true, false} { // by the other program, when this one releases
			t.Run(fmt.Sprintf("%s/%v", name, isHeld), func(t *testing.T) {
				t.Parallel()
				gw := startGateway(t, gatewaytest.Config{})
				config := programOn(gw, "natpmp")
				f := newLoopbackForwarder(t, config.config())
				m, other := enable8080(t, f), (*program)(nil)
				if isHeld {
					other = startProgram(t, config)
					other.line("8080")
				}
				if name == "no reply" {
					t.Cleanup(gw.Inject(gatewaytest.Fault{Times: 1, Drop: true, Match: func(q gatewaytest.Request) bool { return q.Op == "unmap" }}))
				}
				if err := release(f, m); err != nil {
					t.Fatal(err)
				}
				if !isHeld {
					other = startProgram(t, config)
					other.line("8080")
				}
				other.end()
				checkTable(t, gw, "the last program ended")
			})
		}
	}
}

// TestPendingDeletionOfOtherProgram checks that a deletion without a reply is not repeated if
// another program holds the mapping by then.
func TestPendingDeletionOfOtherProgram(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	config := programOn(gw, "natpmp")
	f := newLoopbackForwarder(t, config.config())
	m := enable8080(t, f)
	remove := gw.Inject(gatewaytest.Fault{Drop: true, Match: func(q gatewaytest.Request) bool { return q.Op == "unmap" }})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Shutdown(ctx); err == nil {
		t.Error("deleted without a reply")
	}
	other := startProgram(t, config)
	other.line("8080")
	remove()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	checkTable(t, gw, "the program with the pending deletion ended", 8080)
	other.end()
	checkTable(t, gw, "both programs ended")
}

// TestClosedDuringRequest checks that a Forwarder which was closed during a request does not
// keep another program from deleting the mapping.
func TestClosedDuringRequest(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	config := programOn(gw, "natpmp")
	f := newLoopbackForwarder(t, config.config())
	isMap := func(q gatewaytest.Request) bool { return q.Op == "map" }
	remove := gw.Inject(gatewaytest.Fault{Drop: true, Match: isMap})
	failed := make(chan error, 1)
	go func() {
		_, err := f.Enable(context.Background(), forward.TCP(8080))
		failed <- err
	}()
	if _, err := gw.AwaitRequests(testContext(t), 1, isMap); err != nil {
		t.Fatal(err)
	}
	_ = f.Shutdown(canceledContext())
	if err := <-failed; err == nil {
		t.Error("granted without a reply")
	}
	remove()
	other := startProgram(t, config)
	other.line("8080")
	other.end()
	checkTable(t, gw, "the other program ended")
}

// TestProgramsWithGrantedPort checks that a program is known as a holder of the external port
// that the gateway granted in place of the requested one.
func TestProgramsWithGrantedPort(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.9:80"), External: netip.MustParseAddrPort("0.0.0.0:8080"),
	}); err != nil {
		t.Fatal(err)
	}
	config := programOn(gw, "upnp")
	first := startProgram(t, config)
	first.out.Scan()
	port, err := strconv.ParseUint(first.out.Text(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	config.External = uint16(port)
	second := startProgram(t, config)
	second.line(first.out.Text())
	second.end()
	checkTable(t, gw, "the second program ended", 8080, uint16(port))
	first.end()
	checkTable(t, gw, "both programs ended", 8080)
}

// TestNoRuntimeDirectory checks that a program without a usable directory works as usual and
// logs the reason once.
func TestNoRuntimeDirectory(t *testing.T) {
	skipWithoutHolders(t)
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	missing := filepath.Join(t.TempDir(), "missing")
	config := programOn(gw, "natpmp")
	config.Logs = true
	p := startProgram(t, config, "XDG_RUNTIME_DIR=", "TMPDIR="+missing, "TMP="+missing)
	p.line("8080")
	checkTable(t, gw, "the program runs", 8080)
	p.end()
	p.line("1")
	checkTable(t, gw, "the program ended")
}

// runAndKill starts a program with a state file, and kills it when the file has the mapping.
func runAndKill(t *testing.T, config programConfig) programConfig {
	t.Helper()
	config.StateFile = filepath.Join(t.TempDir(), "state")
	p := startProgram(t, config)
	p.line("8080")
	awaitStateFile(t, config.StateFile, func(content string) bool { return strings.Contains(content, "8080") })
	p.kill()
	return config
}

// awaitStateFile waits until the content of a state file matches.
func awaitStateFile(t *testing.T, path string, match func(content string) bool) {
	t.Helper()
	if !eventually(t, 20*time.Second, func() bool {
		content, err := os.ReadFile(path)
		return err == nil && match(string(content))
	}) {
		t.Fatal("the state file does not have the expected mappings")
	}
}

// TestRestoredMappingOfOtherProgram checks that a mapping of an earlier run that is not
// enabled again stays if another program holds it.
func TestRestoredMappingOfOtherProgram(t *testing.T) {
	skipWithoutHolders(t)
	gw := startGateway(t, gatewaytest.Config{})
	other := programOn(gw, "natpmp")
	config := runAndKill(t, other)
	second := startProgram(t, other)
	second.line("8080")

	forward.SetRestoreGrace(t, time.Millisecond)
	f := newLoopbackForwarder(t, config.config())
	if _, err := f.Enable(t.Context(), forward.UDP(9000)); err != nil { // reads the state file
		t.Fatal(err)
	}
	awaitStateFile(t, config.StateFile, func(content string) bool {
		return strings.Contains(content, "9000") && !strings.Contains(content, "8080")
	})
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	checkTable(t, gw, "the mapping was not enabled again", 8080)
	second.end()
	checkTable(t, gw, "both programs ended")
}
