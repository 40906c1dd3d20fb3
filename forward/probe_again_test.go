package forward

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// silentAtFirst is a backend that lists a table, and whose gateway does not answer until
// it is up.
type silentAtFirst struct {
	named
	up     bool
	probes int
}

func (b *silentAtFirst) probe(context.Context) error {
	b.probes++
	if !b.up {
		return backends.ErrNoReply
	}
	return nil
}

func (b *silentAtFirst) List(context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		yield(backends.Entry{Mapping: backends.Mapping{
			Backend: b.name, Protocol: backends.TCP,
			Internal: netip.MustParseAddrPort("192.0.2.9:80"), External: netip.MustParseAddrPort("45.45.45.1:80"),
		}, Enabled: true}, nil)
	}
}

func (b *silentAtFirst) EntryAt(context.Context, int) (backends.Entry, error) {
	return backends.Entry{}, backends.ErrInvalid
}

func (b *silentAtFirst) Close() error { return nil }

// A protocol that did not answer, beside another that did, is asked again later: not at
// each call, and not never.
func TestFailedProbeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := New(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		late := &silentAtFirst{named: named{name: "late"}}
		f.readyMade = &way{candidates: []*candidate{
			{backend: late, probe: late.probe},
			{backend: &named{name: "prompt"}, probe: func(context.Context) error { return nil }},
		}}
		// What follows uses exported methods only.
		rows := func() int {
			t.Helper()
			entries, err := f.Mappings(t.Context())
			if err != nil && !errors.Is(err, backends.ErrUnsupported) {
				t.Fatal(err)
			}
			return len(entries)
		}
		if n := rows(); n != 0 || late.probes == 0 {
			t.Fatalf("%d rows after %d probes; want a probe that fails, and no table", n, late.probes)
		}
		before := late.probes
		for range 10 {
			rows()
		}
		if late.probes != before {
			t.Errorf("%d probes by ten calls at once after a failure", late.probes-before)
		}
		late.up = true
		time.Sleep(time.Hour)
		if n := rows(); n != 1 {
			t.Errorf("an hour after the gateway began to answer: %d rows, %d probes more; want its table", n, late.probes-before)
		}
	})
}
