package bench

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

var (
	flagRounds = flag.Int("rounds", 0, "number of rounds; 0: one round of a few scenarios, to check that the tool works")
	flagOnly   = flag.String("only", "", "scenarios, separated by commas; empty: all")
	flagSeed   = flag.Uint64("seed", 0, "seed for the order in each round; 0: a random seed")
	flagSpend  = flag.Duration("spend", time.Minute, "time limit for all rounds of one candidate in one scenario; slower candidates run in fewer rounds")
	flagMD     = flag.String("md", "", "file for the tables, in addition to the standard output")
	flagJSON   = flag.String("json", "", "file for every sample")
)

// The environment variables with the paths of the goforward command to measure, and of a
// library program whose size is measured.
const (
	commandEnv  = "GOFORWARD_BENCH_COMMAND"
	onelinerEnv = "GOFORWARD_BENCH_ONELINER"
)

// TestMain builds the programs before the lab starts, because the build may download modules
// and the lab has no network.
func TestMain(m *testing.M) {
	if text := os.Getenv(workerEnv); text != "" {
		os.Exit(work(text))
	}
	if text := os.Getenv(keepEnv); text != "" {
		os.Exit(keep(text))
	}
	flag.Parse()
	only := flag.Lookup("test.run").Value.String()
	for variable, dir := range map[string]string{commandEnv: "../cmd/goforward", onelinerEnv: "../examples/oneliner"} {
		if os.Getenv(variable) != "" || only == "^$" {
			continue
		}
		path, err := build(dir)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: build %s: %v\n", dir, err)
			os.Exit(1)
		}
		os.Setenv(variable, path)
	}
	lab.Main(m)
}

// build builds a program in the same way as a release of the goforward command.
func build(dir string) (path string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path = filepath.Join(cache, "goforward-bench", filepath.Base(dir))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
}

// bench is the state of a run.
type bench struct {
	Result
	rng   *rand.Rand
	smoke bool
	port  uint16 // the last mapped port
}

// TestBench runs the whole benchmark, or one round of a part of it with -rounds 0 or -short.
func TestBench(t *testing.T) {
	lab.Scenario(t, "bench: every candidate maps on a router that supports all protocols")
	b := newBench(t.Context())
	t.Logf("seed %d, rounds %d", b.Seed, b.Rounds)
	for _, s := range scenarios {
		b.part(t, s.key, !s.smoke, func(t *testing.T) { b.cold(t, s) })
	}
	b.part(t, keyGateway, false, b.coldGateway)
	b.part(t, keyDelay, false, b.delays)
	b.part(t, keyRestart, false, b.restarts)
	b.part(t, keyClose, false, b.closes)
	b.part(t, "warm", false, b.warm)
	b.part(t, "cpu", false, b.cpu)
	b.part(t, "tables", true, b.tables)
	b.part(t, "held", false, b.held)
	b.Took = time.Since(b.Date)
	b.write(t)
}

func newBench(ctx context.Context) *bench {
	b := &bench{smoke: *flagRounds == 0 || testing.Short(), port: 20000}
	b.Date, b.Rounds, b.Spend, b.Seed = time.Now(), *flagRounds, *flagSpend, *flagSeed
	if b.smoke {
		b.Rounds = 1
	}
	if b.Seed == 0 {
		b.Seed = rand.Uint64()
	}
	b.rng = rand.New(rand.NewPCG(b.Seed, 0))
	b.describe(ctx)
	return b
}

// part runs one part, unless the flags exclude it.
func (b *bench) part(t *testing.T, key string, long bool, run func(*testing.T)) {
	excluded := *flagOnly != "" && !slices.Contains(strings.Split(*flagOnly, ","), key)
	if excluded || b.smoke && long && *flagOnly == "" {
		return
	}
	t.Run(key, func(t *testing.T) {
		start := time.Now()
		run(t)
		b.logProgress("%s: %v", key, time.Since(start).Round(time.Second))
	})
}

// logProgress writes the progress of a full run to standard error, because such a run takes
// half an hour.
func (b *bench) logProgress(format string, args ...any) {
	if !b.smoke {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func (b *bench) add(s Sample) { b.Samples = append(b.Samples, s) }

func (b *bench) figure(name string, value float64, unit string) {
	b.Figures = append(b.Figures, Figure{Name: name, Value: value, Unit: unit})
}

// nextPort returns a port that was not mapped recently.
func (b *bench) nextPort() uint16 {
	if b.port++; b.port >= 40000 {
		b.port = 20001
	}
	return b.port
}

// shuffled returns the names in a random order, for one round.
func (b *bench) shuffled(names []string) []string {
	out := slices.Clone(names)
	b.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func (b *bench) write(t *testing.T) {
	text := Markdown(&b.Result, legend()) + lastDowntime(t)
	fmt.Fprint(os.Stdout, text)
	if *flagMD != "" {
		if err := os.WriteFile(*flagMD, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	if *flagJSON == "" {
		return
	}
	raw, err := json.MarshalIndent(b.Result, "", " ")
	if err == nil {
		err = os.WriteFile(*flagJSON, append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}
