package holders

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// helperEnv names the directory of the registry for a helper process.
const helperEnv = "HOLDERS_TEST_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		help(dir)
		return
	}
	os.Exit(m.Run())
}

// endpoint returns an endpoint of this host with a port.
func endpoint(port uint16) Endpoint {
	return Endpoint{
		Gateway: netip.MustParseAddrPort("192.168.1.1:5351"), Host: netip.MustParseAddr("192.168.1.2"),
		Protocol: backends.TCP, Port: port,
	}
}

// help executes the commands of a test: each line has a command and a port, and each gets a
// line with the result.
func help(dir string) {
	r, err := Open(filepath.SplitList(dir)...)
	if err != nil {
		panic(err)
	}
	end := func() {}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var (
			command string
			port    uint16
			result  any = true
		)
		_, _ = fmt.Sscan(in.Text(), &command, &port)
		k := endpoint(port).Key()
		switch command {
		case "hold":
			result = r.Hold(k)
		case "wait":
			r.Wait(context.Background(), k)
		case "release":
			r.Release(k)
		case "last": // releases the endpoint and begins its deletion
			r.Release(k)
			fallthrough
		case "begin":
			var ok bool
			if end, ok = r.BeginDelete(k); !ok {
				end = func() {}
			}
			result = ok
		case "end":
			end()
		case "holder":
			pid, held := r.Holder(k)
			result = fmt.Sprint(pid, held)
		}
		fmt.Println(result)
	}
}

// program is a helper process.
type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startProgram(t *testing.T, dir string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), helperEnv+"="+dir)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.in.Close()
		_ = p.cmd.Wait()
	})
	return p
}

// begin sends a command without waiting for the result.
func (p *program) begin(command string, port uint16) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, command, port); err != nil {
		p.t.Fatal(err)
	}
}

// result waits for the result of a command.
func (p *program) result() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatal("the helper process ended")
	}
	return p.out.Text()
}

// check executes a command and compares the result.
func (p *program) check(command string, port uint16, want any) {
	p.t.Helper()
	p.begin(command, port)
	if got := p.result(); got != fmt.Sprint(want) {
		p.t.Errorf("%s %d: %s, want %v", command, port, got, want)
	}
}

// closeFiles closes the files of a registry that no test uses any more.
func closeFiles(r *Registry) {
	for _, f := range r.files {
		_ = f.file.Close()
	}
}

// openNew opens the registry of a new directory.
func openNew(t *testing.T) (*Registry, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "registry")
	r, err := Open(dir)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFiles(r) })
	return r, dir
}

// checkLast checks whether this process can begin to delete an endpoint.
func checkLast(t *testing.T, r *Registry, port uint16, want bool) {
	t.Helper()
	end, ok := r.BeginDelete(endpoint(port).Key())
	if ok {
		end()
	}
	if ok != want {
		t.Errorf("BeginDelete: %v, want %v", ok, want)
	}
}

// TestTwoPrograms checks that only the last of two programs deletes, that each notices the
// other one, and that other endpoints are not affected.
func TestTwoPrograms(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	k := endpoint(8080).Key()
	p.check("hold", 8080, true)
	if !r.Hold(k) {
		t.Error("a second program cannot hold the endpoint")
	}
	for name, other := range map[string]func(*Endpoint){
		"port":      func(e *Endpoint) { e.Port++ },
		"side":      func(e *Endpoint) { e.External = true },
		"transport": func(e *Endpoint) { e.Protocol = backends.UDP },
		"host":      func(e *Endpoint) { e.Host = e.Host.Next() },
		"gateway":   func(e *Endpoint) { e.Gateway = netip.AddrPortFrom(e.Gateway.Addr().Next(), 5351) },
		"peer":      func(e *Endpoint) { e.Remote = e.Host },
	} {
		e := endpoint(8080)
		other(&e)
		if _, held := r.Holder(e.Key()); held {
			t.Errorf("the endpoint with another %s is held", name)
		}
	}
	want := p.cmd.Process.Pid
	if runtime.GOOS == "windows" {
		want = 0
	}
	if pid, held := r.Holder(k); pid != want || !held {
		t.Errorf("Holder: process %d, %v; want %d, true", pid, held, want)
	}
	r.Release(k)
	checkLast(t, r, 8080, false)
	p.check("begin", 8080, true)
	p.check("end", 8080, true)
	p.check("release", 8080, true)
	checkLast(t, r, 8080, true)
	if pid, held := r.Holder(k); pid != 0 || held {
		t.Errorf("Holder: process %d, %v; want none", pid, held)
	}
	if held := r.files[0].held; len(held) != 0 {
		t.Errorf("the registry keeps %v", held)
	}
}

// TestCrash checks that a killed program is no holder any more, and does not block others if
// it was deleting.
func TestCrash(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	p.check("hold", 8080, true)
	p.check("begin", 9000, true)
	checkLast(t, r, 8080, false)
	if r.Hold(endpoint(9000).Key()) {
		t.Error("an endpoint that another program deletes can be held")
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	checkLast(t, r, 8080, true)
	r.Wait(t.Context(), endpoint(9000).Key())
	startProgram(t, dir).check("begin", 9000, false)
}

// TestSimultaneousEnds checks that exactly one of two programs that end at the same time is
// the last one.
func TestSimultaneousEnds(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	k := endpoint(8080).Key()
	for range 200 {
		p.check("hold", 8080, true)
		r.Hold(k)
		p.begin("last", 8080)
		r.Release(k)
		end, mine := r.BeginDelete(k)
		if theirs := p.result() == "true"; mine == theirs {
			t.Fatalf("this program deletes: %v, the other one: %v", mine, theirs)
		}
		if mine {
			end()
		}
		p.check("end", 0, true)
	}
}

// TestNewcomer checks that a program that starts while another one deletes waits for it, and
// then is a holder.
func TestNewcomer(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	end, ok := r.BeginDelete(endpoint(8080).Key())
	if !ok {
		t.Fatal("cannot begin to delete")
	}
	p.check("hold", 8080, false)
	p.begin("wait", 8080)
	end()
	if got := p.result(); got != "true" {
		t.Error(got)
	}
	checkLast(t, r, 8080, false)
	p.check("release", 8080, true)

	ctx, cancel := context.WithCancel(t.Context())
	p.check("begin", 8080, true)
	if r.Hold(endpoint(8080).Key()) {
		t.Error("an endpoint that another program deletes can be held")
	}
	cancel()
	r.Wait(ctx, endpoint(8080).Key()) // returns although the other program still deletes
	p.check("end", 8080, true)
	p.check("holder", 8080, "0 false")
	r.Hold(endpoint(8080).Key()) // the next attempt succeeds
	p.check("begin", 8080, false)
}

// TestOwnHolders checks that the holders of one process are counted, and that its own
// deletion does not end them.
func TestOwnHolders(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	k := endpoint(8080).Key()
	r.Hold(k, 0)
	r.Hold(k, 0)
	r.Release(k, 0)
	p.check("begin", 8080, false)
	end, ok := r.BeginDelete(k)
	if !ok {
		t.Fatal("cannot delete an endpoint that only this process holds")
	}
	p.check("hold", 8080, false)
	end()
	p.check("wait", 8080, true)
	p.check("release", 8080, true)
	p.check("begin", 8080, false)
	r.Release(k)
	p.check("begin", 8080, true)
}

// TestManyEndpoints checks that adjacent ports are independent, and that the file stays empty.
func TestManyEndpoints(t *testing.T) {
	r, dir := openNew(t)
	p := startProgram(t, dir)
	for port := uint16(1); port <= 10000; port++ {
		r.Hold(endpoint(port).Key())
	}
	for port := uint16(2); port <= 10000; port += 2 {
		r.Release(endpoint(port).Key())
	}
	for port := uint16(5000); port < 5010; port++ {
		p.check("begin", port, port%2 == 0)
		p.check("end", port, true)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v; want one file", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Size() != 0 {
		t.Errorf("%v, %v; want an empty file", info, err)
	}
}

// TestNoRegistry checks that a nil Registry knows no other program.
func TestNoRegistry(t *testing.T) {
	var r *Registry
	k := endpoint(8080).Key()
	if !r.Hold(k) {
		t.Error("cannot hold")
	}
	r.Wait(t.Context(), k)
	r.Release(k)
	checkLast(t, r, 8080, true)
	if _, held := r.Holder(k); held {
		t.Error("there is a holder")
	}
}

// TestOpenUnsafe checks that a directory or file that others could replace is not used.
func TestOpenUnsafe(t *testing.T) {
	if !hasModes {
		t.Skip("this system has no modes")
	}
	for name, test := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"a directory for others": {func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o750))
		}, "other users have permissions"},
		"a link": {func(dir string) error {
			return errors.Join(os.Mkdir(dir+".target", 0o700), os.Symlink(dir+".target", dir))
		}, "the file type is L"},
		"a file": {func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "the file type is -"},
		"a link in the directory": {func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink(dir+".target", filepath.Join(dir, "holders.lock")))
		}, "holders.lock"},
		"a directory in the directory": {func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, "holders.lock"), 0o700)
		}, "is a directory"},
		"a file for others": {func(dir string) error {
			path := filepath.Join(dir, "holders.lock")
			return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666))
		}, "other users have permissions"},
		"another owner": {func(dir string) error {
			if os.Geteuid() != 0 {
				return errors.ErrUnsupported
			}
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534))
		}, "another user"},
		"no parent": {func(string) error { return nil }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "registry")
			if name == "no parent" {
				dir = filepath.Join(dir, "registry")
			}
			if err := test.make(dir); errors.Is(err, errors.ErrUnsupported) {
				t.Skip("only root can give a directory to another user")
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestDefault checks which directories are used, and that the reason is returned if none is
// usable.
func TestDefault(t *testing.T) {
	if !hasModes {
		t.Skip("other systems have other directories")
	}
	temp, run := t.TempDir(), t.TempDir()
	inTemp, inRun := filepath.Join(temp, fmt.Sprintf("goforward-%d", os.Geteuid())), filepath.Join(run, "goforward")
	t.Setenv("TMPDIR", temp)
	check := func(runtimeDir string, want ...string) {
		t.Helper()
		t.Setenv("XDG_RUNTIME_DIR", runtimeDir)
		r, err := Open(directories()...)
		if err != nil {
			t.Fatal(err)
		}
		defer closeFiles(r)
		var got []string
		for _, f := range r.files {
			got = append(got, filepath.Dir(f.file.Name()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("XDG_RUNTIME_DIR=%q: %s, want %s", runtimeDir, got, want)
		}
	}
	check(run, inRun, inTemp)
	check("", inTemp)
	check("relative", inTemp)
	check(filepath.Join(run, "missing"), inTemp)
	if err := os.Chmod(inTemp, 0o755); err != nil {
		t.Fatal(err)
	}
	check(run, inRun)
	t.Setenv("XDG_RUNTIME_DIR", "")
	if r, err := Open(directories()...); r != nil || err == nil || !strings.Contains(err.Error(), inTemp) {
		t.Errorf("%v, %v; want no registry, and the reason", r, err)
	}
	if err := os.Chmod(inTemp, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(run, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		check(run, inTemp) // as after sudo -E
	}
}

// TestTwoDirectories checks that a program with a runtime directory and one without it notice
// each other, also after the runtime directory was deleted and created again.
func TestTwoDirectories(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	runtimeDir, temp := filepath.Join(base, "run"), filepath.Join(base, "temp")
	r, err := Open(runtimeDir, temp)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles(r)
	k := endpoint(1).Key()
	if !r.Hold(k) {
		t.Error("the endpoint is in use")
	}
	service := startProgram(t, temp)
	service.check("hold", 1, true)
	if err := os.RemoveAll(runtimeDir); err != nil {
		t.Fatal(err)
	}
	login := startProgram(t, runtimeDir+string(filepath.ListSeparator)+temp)
	login.check("hold", 1, true)
	login.check("last", 1, false)
	service.check("last", 1, false)
	if _, held := r.Holder(k); held {
		t.Error("another program holds the endpoint")
	}
	r.Release(k)
	end, ok := r.BeginDelete(k)
	if !ok {
		t.Fatal("another program holds the endpoint")
	}
	service.check("hold", 1, false)
	end()
	service.check("last", 1, true)
	service.check("end", 1, true)
}

// TestStickyFile checks that the file has the sticky bit, so that systemd-tmpfiles does not
// delete it while programs use it.
func TestStickyFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("other systems do not have the bit for files")
	}
	dir := filepath.Join(t.TempDir(), "holders")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "holders.lock"))
	if err != nil || info.Mode() != 0o600|fs.ModeSticky {
		t.Errorf("mode %v, %v, want %v", info.Mode(), err, 0o600|fs.ModeSticky)
	}
}
