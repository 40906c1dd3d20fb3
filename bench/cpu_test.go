package bench

import (
	"runtime"
	"testing"
)

// pairs are the candidates that map and unmap a port over NAT-PMP.
var pairs = []warm{
	{keyEnable, goforwardGatewayName, enableAndClose},
	{keyEnable, goNATPMPName, addAndDelete},
}

// cpu measures the processor time and the allocations of a warm pair of calls that map and
// unmap a port. It includes those of gatewaytest, which are the same for both candidates. On an
// idle machine, it also includes the time in which the scheduler of Go wakes threads for
// goroutines that another thread then runs. With one processor, it does not.
func (b *bench) cpu(t *testing.T) {
	const number = 200 // pairs in a sample, because the clock is coarse
	type run struct {
		key  string
		pair func() error
	}
	var all []run
	for i, w := range pairs {
		all = append(all, run{[]string{goforwardName, goNATPMPName}[i], w.start(t)()})
	}
	allocs := map[string]float64{}
	measure := func(key string, round int) {
		for order, i := range b.rng.Perm(len(all)) {
			r := all[i]
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := processorTime()
			var err error
			for range number {
				if err == nil {
					err = r.pair()
				}
			}
			s := Sample{Scenario: key, Candidate: r.key, Round: round, Order: order, Took: (processorTime() - begin) / number}
			runtime.ReadMemStats(&after)
			if err != nil {
				s.Err = err.Error()
				t.Errorf("%s: %v", r.key, err)
			}
			allocs[r.key] = float64(after.Mallocs-before.Mallocs) / number
			b.add(s)
		}
	}
	for round := range b.Rounds {
		measure(keyPairCPU, round)
		processors := runtime.GOMAXPROCS(1)
		measure(keyPairCPUOne, round)
		runtime.GOMAXPROCS(processors)
	}
	b.figure(figurePairAllocs, allocs[goforwardName], "")
	b.figure(figurePairAllocs+", "+goNATPMPName, allocs[goNATPMPName], "")
}
