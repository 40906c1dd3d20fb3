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

// bench is a run under way.
type bench struct {
	Result
	rng   *rand.Rand
	smoke bool
	port  uint16 // the last that was mapped
}

// TestBench is the whole bench, or with -rounds 0 or -short one round of a part of it.
func TestBench(t *testing.T) {
	lab.Scenario(t, "bench: everybody maps on a router that speaks everything")
	b := newBench(t.Context())
	t.Logf("seed %d, rounds %d", b.Seed, b.Rounds)
	for _, s := range scenarios {
		b.part(t, s.key, !s.smoke, func(t *testing.T) { b.cold(t, s) })
	}
	b.part(t, keyGateway, false, b.coldGateway)
	b.part(t, keyDelay, false, b.delays)
	b.part(t, keyRestart, false, b.restarts)
	b.part(t, "warm", false, b.warm)
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

// part runs one part, unless it is not wanted.
func (b *bench) part(t *testing.T, key string, long bool, run func(*testing.T)) {
	only := *flagOnly != "" && !slices.Contains(strings.Split(*flagOnly, ","), key)
	if only || b.smoke && long && *flagOnly == "" {
		return
	}
	t.Run(key, func(t *testing.T) {
		begun := time.Now()
		run(t)
		b.say("%s: %v", key, time.Since(begun).Round(time.Second))
	})
}

// say tells on standard error how far it is: a run takes long.
func (b *bench) say(format string, args ...any) {
	if !b.smoke {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func (b *bench) add(s Sample) { b.Samples = append(b.Samples, s) }

func (b *bench) figure(name string, value float64, unit string) {
	b.Figures = append(b.Figures, Figure{Name: name, Value: value, Unit: unit})
}

// nextPort is one that nobody mapped lately.
func (b *bench) nextPort() uint16 {
	if b.port++; b.port >= 40000 {
		b.port = 20001
	}
	return b.port
}

// shuffled is the order of a round.
func (b *bench) shuffled(names []string) []string {
	out := slices.Clone(names)
	b.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func (b *bench) write(t *testing.T) {
	text := Markdown(&b.Result, descriptions())
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
