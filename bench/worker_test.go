package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// workerEnv is the environment variable with the target of a worker. A worker is a process
// of this test binary that takes one sample. A new process has no caches.
const workerEnv = "GOFORWARD_BENCH_SAMPLE"

const (
	watchdog       = 20 * time.Second       // a sample that takes longer has failed
	grace          = 200 * time.Millisecond // extra time for candidates to return after their context ended
	cleanupTimeout = 10 * time.Second
	startupTimeout = 20 * time.Second
	resultMark     = "bench-sample: "
)

// target describes the sample that a worker takes.
type target struct {
	Candidate string
	Gateway   netip.Addr
	Self      netip.Addr
	Port      uint16         // the port to map
	SSDP      netip.AddrPort // the destination of searches; the zero value: the default
	Command   string         // the path of the goforward command
	// Description is the URL of the description of the UPnP device; only for candidates that
	// do not search for it.
	Description string
}

// attempt is a prepared sample.
type attempt struct {
	run   func(context.Context) (outcome, error) // the measured calls
	clean func()                                 // deletes the mapping; called only after success
}

// outcome is the result of a successful attempt.
type outcome struct {
	External netip.AddrPort
	Protocol string // empty if the candidate does not report it
}

// report is the output of a worker.
type report struct {
	Took, SSDP    time.Duration
	External      netip.AddrPort
	Protocol, Err string
}

// work is the main function of a worker. It returns the exit code.
func work(text string) int {
	var to target
	if err := json.Unmarshal([]byte(text), &to); err != nil {
		fmt.Fprintln(os.Stderr, "bench: read the target:", err)
		return 2
	}
	p, ok := candidateNamed(to.Candidate)
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: no candidate %q\n", to.Candidate)
		return 2
	}
	a, err := p.prepare(to)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: prepare %s: %v\n", to.Candidate, err)
		return 2
	}
	r, ended := take(a)
	line, err := json.Marshal(r)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	fmt.Fprintf(os.Stdout, "%s%s\n", resultMark, line)
	if ended && r.Err == "" {
		endsWithin(cleanupTimeout, a.clean)
	}
	return 0
}

// take runs an attempt and measures it. It stops waiting when the watchdog expires; ended is
// then false.
func take(a attempt) (r report, ended bool) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), watchdog, errors.New("the watchdog expired"))
	defer cancel()
	searches := sniffSearches()
	runtime.GC() // frees the garbage of package initialisation
	start := time.Now()
	ended = endsWithin(watchdog+grace, func() {
		got, err := a.run(ctx)
		r = report{Took: time.Since(start), External: got.External, Protocol: got.Protocol}
		if err != nil {
			r.Err = err.Error()
		} else if !got.External.IsValid() || got.External.Port() == 0 || got.External.Addr().IsUnspecified() {
			r.Err = fmt.Sprintf("success with the external endpoint %v", got.External)
		}
	})
	if !ended {
		return report{Took: watchdog, Err: fmt.Sprintf("no result within %v", watchdog), SSDP: searches.delay()}, false
	}
	r.SSDP = searches.delay()
	return r, true
}

// endsWithin calls f and reports whether f returns within d.
func endsWithin(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// sample runs a worker and returns its sample. cmd must start this test binary.
func sample(cmd *exec.Cmd, to target) Sample {
	s := Sample{Candidate: to.Candidate}
	arg, err := json.Marshal(to)
	if err != nil {
		s.Err = err.Error()
		return s
	}
	var stdout, stderr bytes.Buffer
	cmd.Env = append(os.Environ(), workerEnv+"="+string(arg))
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	for line := range lines(&stdout) {
		text, is := strings.CutPrefix(line, resultMark)
		if !is {
			continue
		}
		var r report
		if jerr := json.Unmarshal([]byte(text), &r); jerr != nil {
			s.Err = jerr.Error()
			return s
		}
		s.Took, s.SSDP, s.Protocol, s.Err = r.Took, r.SSDP, r.Protocol, r.Err
		return s
	}
	s.Err = fmt.Sprintf("the worker returned no sample: %v: %s", err, lastLine(&stderr))
	return s
}

// lines returns an iterator over the lines of an output.
func lines(r *bytes.Buffer) func(func(string) bool) {
	return func(yield func(string) bool) {
		scanner := bufio.NewScanner(r)
		for scanner.Scan() && yield(scanner.Text()) {
		}
	}
}

// lastLine returns the last line of an output. If the output contains a panic, it returns
// the line with the reason instead.
func lastLine(r *bytes.Buffer) string {
	var last string
	for line := range lines(r) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			return line
		}
		last = line
	}
	return last
}
