package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

var (
	flagRounds = flag.Int("rounds", 0, "how often everybody is asked; 0: once, in a few scenarios, to see that it works")
	flagOnly   = flag.String("only", "", "scenarios, separated by commas; empty: all")
	flagSeed   = flag.Uint64("seed", 0, "what the order in each round is drawn from; 0: another one each time")
	flagSpend  = flag.Duration("spend", time.Minute, "those who would take longer than this for all rounds of a scenario take part in fewer")
	flagMD     = flag.String("md", "", "where to write the tables, besides the standard output")
	flagJSON   = flag.String("json", "", "where to write every sample")
)

// commandEnv has the path of the command line program that is measured.
const commandEnv = "GOFORWARD_BENCH_COMMAND"

// The lab has no network, so what may have to be downloaded is built before.
func TestMain(m *testing.M) {
	if text := os.Getenv(workerEnv); text != "" {
		os.Exit(work(text))
	}
	flag.Parse()
	only := flag.Lookup("test.run").Value.String()
	if os.Getenv(commandEnv) == "" && only != "^$" {
		path, err := buildCommand()
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: build the command line program:", err)
			os.Exit(1)
		}
		os.Setenv(commandEnv, path)
	}
	lab.Main(m)
}

// buildCommand builds goforward as it is released.
func buildCommand() (path string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path = filepath.Join(cache, "goforward-bench", "goforward")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Dir = "../cmd/goforward"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
}
