package forward_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
)

// The operations of the model in real time, on a gateway that answers at once, while
// it restarts. At the end, mappings and their Forwarders are closed at the same time.
// The test checks the events, and that the gateway has nothing after Shutdown.
func TestModelStress(t *testing.T) {
	// More threads than processors: any of them may be preempted anywhere.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const lasts = 6 * time.Second
	seed, counts := simSeed(t), map[string]int{}
	for begin := time.Now(); time.Since(begin) < lasts && !t.Failed(); seed++ {
		w := &modelWorld{
			t: t, seed: seed, instant: true, counts: counts,
			handles: map[*forward.Mapping]*modelHandle{}, slots: make([]modelSlot, modelSlots),
		}
		w.gateways = []*modelGateway{newModelGateway(w, 0, modelAddrs[0].gateway, modelAddrs[0].local)}
		w.gateways[0].loss = 0
		for i := range 2 {
			w.forwarders = append(w.forwarders, w.newForwarder(i))
		}
		w.stress()
		w.report()
		counts["rounds"]++
	}
	t.Logf("checked: %v", counts)
}

// stress does operations and restarts at the same time, then closes everything.
func (w *modelWorld) stress() {
	var doing, closing, ending sync.WaitGroup
	for i := range modelActors {
		a := &modelActor{world: w, rng: rand.New(rand.NewPCG(w.seed, uint64(1+i)))}
		doing.Go(func() {
			for range 20 {
				a.step()
			}
		})
	}
	doing.Go(func() {
		g := w.gateways[0]
		for i := range 20 {
			g.restart(i%2 == 0)
			g.set(func() { g.take(i) })
			runtime.Gosched()
			g.set(func() { clear(g.taken) })
		}
	})
	doing.Wait()
	w.mu.Lock()
	open := slices.Clone(w.order)
	for _, f := range w.forwarders {
		f.closing = true
	}
	w.mu.Unlock()
	for _, h := range open {
		closing.Go(func() { _ = h.mapping.Close() })
	}
	for _, f := range w.current() {
		ending.Go(func() {
			if err := f.Shutdown(context.Background()); err != nil {
				w.fail("Shutdown of Forwarder %d: %v", f.index, err)
			}
		})
	}
	ending.Wait()
	w.checkEnd() // also if a Close has not returned
	closing.Wait()
}
