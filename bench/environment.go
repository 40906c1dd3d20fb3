package bench

import (
	"bufio"
	"context"
	_ "embed" // go.mod
	"os"
	"os/exec"
	"runtime"
	"strings"
)

const rootModule = "github.com/natforward/goforward"

// describe sets the fields about the machine and the versions. It leaves fields empty if it
// cannot determine them.
func (r *Run) describe(ctx context.Context) {
	r.Go = runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	r.CPUs = runtime.NumCPU()
	r.Kernel = firstLine("/proc/sys/kernel/osrelease", "")
	_, r.CPU, _ = strings.Cut(firstLine("/proc/cpuinfo", "model name"), ": ")
	r.Load = firstLine("/proc/loadavg", "")
	r.Versions = versions(ctx)
}

// firstLine returns the first line of a file that begins with prefix, or "".
func firstLine(path, prefix string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		if strings.HasPrefix(scanner.Text(), prefix) {
			return scanner.Text()
		}
	}
	return ""
}

// requirements is this module's go.mod. A test binary has no information about the versions
// of its modules.
//
//go:embed go.mod
var requirements string

// versions returns the versions of all modules that go.mod requires, and of the Debian
// packages of the programs.
func versions(ctx context.Context) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(requirements) {
		if path, version, two := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "require")), " v"); two && !strings.Contains(path, " ") {
			out[path], _, _ = strings.Cut("v"+version, " ")
		}
	}
	out[rootModule] = "this tree"
	for _, name := range []string{"natpmpc", "miniupnpc", "miniupnpd"} {
		version, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err == nil {
			out[name] = string(version)
		}
	}
	return out
}
