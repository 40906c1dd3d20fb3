package lab_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// testBinary returns a command that runs this test binary again. It creates its own
// namespaces and treats this process's namespaces as the machine.
func testBinary(t *testing.T, path, run string, env ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, "-test.run="+run, "-test.v")
	cmd.Env = append(lab.WithoutRole(os.Environ()), env...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailuresAreReported(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: failures are told")
	lab.New(t) // skips the test if there is no lab
	for mode, want := range map[string]struct {
		code int
		text []string
		env  []string
		ran  string
	}{
		"pass":        {ran: "subprocess pass\n"},
		"fail":        {code: 1, text: []string{"a$ false: exit status 1", "transcript of the lab", "ip netns add"}},
		"fatal":       {code: 1, text: []string{"a: fails: the test must fail"}},
		"not reading": {code: 1, text: []string{"a: fails: the test must fail"}},
		"panic":       {code: 1, text: []string{"panics: panic: boom", "exit status 2"}},
		"no message":  {code: 1, text: []string{"a: returns at once: exited", "but a message was expected"}},
		"exit":        {code: 1, text: []string{"a: exits non-zero: exit status 7"}},
		"reached":     {code: 1, text: []string{"45.45.45.1:8080 is forwarded to 192.168.77.2:80, which received bytes from 45.45.45.2"}},
		"no server":   {code: 1, text: []string{"a missing reply proves nothing"}},
		"not reached": {code: 1, text: []string{"45.45.45.1:80 is not forwarded to 192.168.77.2:80"}},
		"skipped":     {text: []string{"LAB SKIPPED: not installed: no-such-program"}},
		"required":    {code: 1, text: []string{"LAB REQUIRED but impossible here: not installed: no-such-program"}},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ran := filepath.Join(t.TempDir(), "ran")
			env := []string{subprocessEnv + "=" + mode, "GOFORWARD_LAB_RAN=" + ran, "GOFORWARD_LAB="}
			switch mode {
			case "skipped":
				env = append(env, subprocessEnv+"=pass", requireProgramEnv+"=no-such-program")
			case "required":
				env = append(env, subprocessEnv+"=pass", requireProgramEnv+"=no-such-program", "GOFORWARD_LAB=require")
			}
			cmd := testBinary(t, self(t), "^TestSubprocess$", env...)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != want.code {
				t.Errorf("exit code %d (%v), want %d", code, err, want.code)
			}
			for _, text := range want.text {
				if !strings.Contains(string(out), text) {
					t.Errorf("%q is missing", text)
				}
			}
			if got, err := os.ReadFile(ran); string(got) != want.ran || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("scenarios that ran: %q, %v; want %q", got, err, want.ran)
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}

func TestNothingRemains(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: nothing remains after kill -9 and timeout")
	lab.New(t)
	for name, test := range map[string]struct {
		args []string
		end  func(*os.Process) error
	}{
		"kill -9":      {end: (*os.Process).Kill},
		"interrupt":    {end: func(p *os.Process) error { return p.Signal(os.Interrupt) }},
		"test timeout": {args: []string{"-test.timeout=8s"}, end: func(*os.Process) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := testBinary(t, self(t), "^TestSubprocess$", subprocessEnv+"=hang")
			cmd.Args = append(cmd.Args, test.args...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(out)
			for line := ""; line != "READY\n"; {
				if line, err = r.ReadString('\n'); err != nil {
					t.Fatalf("the subprocess is not ready: %v", err)
				}
			}
			processes := descendants(t, cmd.Process.Pid)
			if !slices.Contains(slices.Collect(maps.Values(processes)), "miniupnpd") || len(processes) < 4 {
				t.Errorf("running before the end: %v, want the tests, miniupnpd and a function", processes)
			}
			if err := test.end(cmd.Process); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r)
			if err := cmd.Wait(); err == nil {
				t.Error("the subprocess has passed")
			}
			waitForExit(t, processes)
		})
	}
	t.Cleanup(func() { requireNoTraces(t) })
}

// requireNoTraces checks that the test left nothing in the namespaces outside those that
// it created.
func requireNoTraces(t *testing.T) {
	for _, args := range [][]string{
		{"nft", "list", "ruleset"},
		{"ip", "-brief", "link", "show", "type", "veth"},
		{"ip", "-brief", "link", "show", "type", "bridge"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%v: %s, %v; want nothing", args, out, err)
		}
	}
}

// descendants returns the names of a process and all its descendants by pid.
func descendants(t *testing.T, root int) map[int]string {
	t.Helper()
	processes := map[int]string{}
	for before := -1; before != len(processes); {
		before = len(processes)
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			pid, name, parent := stat(path)
			if _, ok := processes[parent]; ok || pid == root {
				processes[pid] = name
			}
		}
	}
	return processes
}

// stat parses "PID (NAME) STATE PPID …". It returns zeros if the process has exited, or
// is a zombie that the first process of the pid namespace has adopted.
func stat(path string) (pid int, name string, parent int) {
	b, _ := os.ReadFile(path)
	head, tail, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(tail)
	if len(f) < 2 || f[0] == "Z" {
		return 0, "", 0
	}
	num, name, _ := strings.Cut(head, " (")
	pid, _ = strconv.Atoi(num)
	parent, _ = strconv.Atoi(f[1])
	return pid, name, parent
}

// waitForExit waits until the processes have exited. The kernel kills the processes of a
// pid namespace asynchronously.
func waitForExit(t *testing.T, processes map[int]string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var running []string
		for pid, name := range processes {
			if _, now, _ := stat("/proc/" + strconv.Itoa(pid) + "/stat"); now == name {
				running = append(running, name)
			}
		}
		if len(running) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v", running)
		}
	}
}

// TestUnprivileged runs a lab as a user other than root.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: as a plain user")
	lab.New(t)
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(ids)); len(f) == 3 && f[2] == "1" {
		return // this run is unprivileged already
	}
	// Only the owner can read a directory that go test creates.
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "lab.test")
	// This process must not write the file itself: a child that is forked meanwhile would
	// hold the file open for writing, and such a file cannot be executed.
	if out, err := exec.Command("cp", self(t), binary).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.Chmod(binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := testBinary(t, binary, "^(TestMapTCP|TestFuncServes|TestRefused5351)$", "GOFORWARD_LAB=require", "GOFORWARD_LAB_RAN=")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 3 {
		t.Errorf("as user nobody: %v\n%s", err, out)
	}
}
