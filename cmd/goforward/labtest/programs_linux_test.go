package labtest

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// hold8080 starts map --hold for TCP port 8080, with a wrapper, and waits for the mapping.
func hold8080(t *testing.T, home *lab.HomeNet, backend string, wrapper ...string) *commandProcess {
	t.Helper()
	p := execute(t, home.Lan, wrapper, "map", "8080", "--hold", "--backend", backend)
	if line := strings.TrimSpace(p.readLine()); line != externalAddr(home, 8080).String() {
		t.Fatalf("printed %q, want %v", line, externalAddr(home, 8080))
	}
	return p
}

// endHold interrupts map --hold, which must report the event.
func endHold(t *testing.T, p *commandProcess, event string) {
	t.Helper()
	p.signal(syscall.SIGINT)
	if stderr := p.wantExit(0); !strings.Contains(stderr, " "+event+" tcp ") {
		t.Errorf("the command printed %q, want the event %s", stderr, event)
	}
}

// TestProgramsOfUser checks two programs of one user that map the same port: the mapping
// stays until the last one ends, even if the other one was killed.
func TestProgramsOfUser(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: two programs of a user map one port, "+backend)
			home := lab.Home(t, lab.Router{})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			one, two := hold8080(t, home, backend), hold8080(t, home, backend)
			endHold(t, one, "kept")
			home.Reaches(t, echo, externalAddr(home, 8080))
			endHold(t, two, "unmapped")
			home.DoesNotReach(t, echo, externalAddr(home, 8080))
			wantRules(t, home, 0)

			killed, last := hold8080(t, home, backend), hold8080(t, home, backend)
			killed.signal(syscall.SIGKILL)
			killed.wait()
			home.Reaches(t, echo, externalAddr(home, 8080))
			endHold(t, last, "unmapped")
			home.DoesNotReach(t, echo, externalAddr(home, 8080))
			wantRules(t, home, 0)
		})
	}
}

// TestProgramsForced checks a program whose mapping is deleted by unmap --force, after another
// program that mapped the same port was killed. The next check maps the port again. The command
// checks at the default interval, so this is a long form.
func TestProgramsForced(t *testing.T) {
	t.Parallel()
	if !longChecks {
		t.Skip("GOFORWARD_CHECKS=all runs it")
	}
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			home := lab.Home(t, lab.Router{})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			killed, survivor := hold8080(t, home, backend), hold8080(t, home, backend)
			killed.signal(syscall.SIGKILL)
			killed.wait()
			survivor.signal(stopSignal) // so that it notices the deletion after the test
			execute(t, home.Lan, nil, "unmap", "8080", "--force", "--backend", backend).wantExit(0)
			home.DoesNotReach(t, echo, externalAddr(home, 8080))
			survivor.signal(continueSignal)
			took := waitReachable(t, home, echo, externalAddr(home, 8080), 2*checkInterval()+checkMargin)
			t.Logf("bytes arrived %v after the deletion", took)
			endHold(t, survivor, "unmapped")
			wantRules(t, home, 0)
		})
	}
}

// TestProgramsOfUsers shows a limit: a program does not notice one with other directories, as
// another user has, and deletes its mapping.
func TestProgramsOfUsers(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: programs of two users map one port")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	dir := t.TempDir()
	one, two := hold8080(t, home, "natpmp"), hold8080(t, home, "natpmp", "env", "XDG_RUNTIME_DIR="+dir, "TMPDIR="+dir)
	endHold(t, two, "unmapped")
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	endHold(t, one, "unmapped")
}

// TestProgramsInContainers checks programs with mounts of their own, as in containers that
// use the network of the host. They notice each other only if they share a directory.
func TestProgramsInContainers(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: programs in two containers map one port")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	mountPoint, shared := t.TempDir(), t.TempDir()
	if err := os.Chmod(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	container := func(variable string, mount string) []string {
		return []string{
			"unshare", "--mount", "env", "-u", "XDG_RUNTIME_DIR", variable + "=" + mountPoint,
			"sh", "-c", "mount " + mount + " " + mountPoint + ` && exec "$@"`, "sh",
		}
	}
	separate := container("TMPDIR", "-t tmpfs none")
	one, two := hold8080(t, home, "natpmp", separate...), hold8080(t, home, "natpmp", separate...)
	endHold(t, one, "unmapped")
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	endHold(t, two, "unmapped")

	common := container("XDG_RUNTIME_DIR", "--bind "+shared)
	one, two = hold8080(t, home, "natpmp", common...), hold8080(t, home, "natpmp", common...)
	endHold(t, one, "kept")
	home.Reaches(t, echo, externalAddr(home, 8080))
	endHold(t, two, "unmapped")
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	wantRules(t, home, 0)
}
