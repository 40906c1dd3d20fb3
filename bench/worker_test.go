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

// workerEnv holds the target of a worker: this very binary, in a process of its
// own that takes one sample, so that all is cold.
const workerEnv = "GOFORWARD_BENCH_SAMPLE"

const (
	watchdog    = 20 * time.Second       // a sample that takes longer has failed
	grace       = 200 * time.Millisecond // for those who obey a context
	cleaning    = 10 * time.Second
	startingUp  = 20 * time.Second
	resultMark  = "bench-sample: "
	environment = "XDG_STATE_HOME=/run/state" // of commands: the lab's own, not the user's
)

// target is what a worker is to do.
type target struct {
	Peer    string
	Gateway netip.Addr
	Self    netip.Addr
	Port    uint16         // to map
	SSDP    netip.AddrPort // where to search; the zero value: as usual
	Command string         // the path of goforward's command line program
}

// attempt is a sample that is ready to be taken.
type attempt struct {
	run   func(context.Context) (outcome, error) // what is measured
	clean func()                                 // takes the mapping away; only after success
}

// outcome is what a peer has got.
type outcome struct {
	External netip.AddrPort
	Way      string // the protocol, where the peer tells
}

// report is what a worker says.
type report struct {
	Took, SSDP time.Duration
	External   netip.AddrPort
	Way, Err   string
}

// work is the whole life of a worker.
func work(text string) int {
	var to target
	if err := json.Unmarshal([]byte(text), &to); err != nil {
		fmt.Fprintln(os.Stderr, "bench: read the target:", err)
		return 2
	}
	p, ok := peerNamed(to.Peer)
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: no peer %q\n", to.Peer)
		return 2
	}
	a, err := p.prepare(to)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: prepare %s: %v\n", to.Peer, err)
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
		within(cleaning, a.clean)
	}
	return 0
}

// take measures. It does not wait for a peer that the watchdog has given up.
func take(a attempt) (r report, ended bool) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), watchdog, errors.New("the watchdog ended it"))
	defer cancel()
	searches := watchSearches()
	runtime.GC() // of what package initialisation left
	begun := time.Now()
	ended = within(watchdog+grace, func() {
		got, err := a.run(ctx)
		r = report{Took: time.Since(begun), External: got.External, Way: got.Way}
		if err != nil {
			r.Err = err.Error()
		} else if !got.External.IsValid() || got.External.Port() == 0 || got.External.Addr().IsUnspecified() {
			r.Err = fmt.Sprintf("success with the external endpoint %v", got.External)
		}
	})
	if !ended {
		return report{Took: watchdog, Err: fmt.Sprintf("nothing within %v", watchdog), SSDP: searches.delay()}, false
	}
	r.SSDP = searches.delay()
	return r, true
}

// within reports whether f ends in time.
func within(d time.Duration, f func()) bool {
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

// sample runs a worker by a command that is this binary, somewhere.
func sample(cmd *exec.Cmd, to target) Sample {
	s := Sample{Peer: to.Peer}
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
		s.Took, s.SSDP, s.Way, s.Err = r.Took, r.SSDP, r.Way, r.Err
		return s
	}
	s.Err = fmt.Sprintf("the worker said nothing: %v: %s", err, lastLine(&stderr))
	return s
}

func lines(r *bytes.Buffer) func(func(string) bool) {
	return func(yield func(string) bool) {
		scanner := bufio.NewScanner(r)
		for scanner.Scan() && yield(scanner.Text()) {
		}
	}
}

// lastLine of a panic is of little use: the first that tells of it is better.
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
