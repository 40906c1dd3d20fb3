package forward

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/state"
)

// store implements Config.StateFile. It records the Forwarder's mappings on gateways at each
// change, and holds the records of an earlier run. Without a path, it only holds the records
// of mappings that could not be deleted.
type store struct {
	forwarder *Forwarder
	path      string
	wake      chan struct{} // requests a write
	renewed   atomic.Bool   // a lifetime is longer than the file records

	opening       sync.Mutex // held while the file is opened, written or closed
	file          *state.File
	openAttempted bool // open was called; later attempts are made by run

	unassigned []state.Record // mappings at gateways without a route; only code on the loop uses it
}

// restoreGrace is how long a mapping of an earlier run is kept for an Enable of the same
// mapping.
var restoreGrace = 30 * time.Second // a variable because tests shorten it

const (
	obsoleteAfter   = 30 * 24 * time.Hour // for a mapping without an end, if its gateway is not found
	expiryTolerance = 10 * time.Minute    // a mapping may last longer than the file records
	writePause      = 250 * time.Millisecond
	writeEvery      = time.Minute // for changes by renewals only
)

// open opens the file before the first request. If that fails, run opens it later.
func (s *store) open() {
	if s.path == "" {
		return
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if !s.openAttempted {
		s.openAttempted = true
		s.openNow(slog.LevelWarn)
	}
}

// openNow opens the file. The caller holds opening.
func (s *store) openNow(level slog.Level) {
	f := s.forwarder
	file, records, err := state.Open(s.path)
	if err != nil {
		f.log.Log(f.ctx, level, "the state file is invalid or cannot be opened", "file", s.path, "usable", file != nil, "err", err)
	}
	s.file = file
	f.loop.Do(func() {
		s.unassigned = append(s.unassigned, records...)
		for _, r := range f.routes {
			s.restore(r)
		}
	})
}

// restore passes the records of an earlier run to the owner of their gateway. It runs on the
// loop.
func (s *store) restore(r *route) {
	gw, local := r.path.gateway.Addr(), r.path.local
	s.unassigned = slices.DeleteFunc(s.unassigned, func(row state.Record) bool {
		m := row.Mapping
		isOnRoute := (!gw.IsValid() || gw == m.Gateway.Addr()) && (!local.IsValid() || local == m.Internal.Addr())
		return isObsolete(row) || isOnRoute && r.client.Restore(row, restoreGrace)
	})
}

// requestWrite makes run write the file.
func (s *store) requestWrite() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes the file after changes, until the Forwarder is closed.
func (s *store) run() {
	ctx := s.forwarder.ctx
	s.open()
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.wake:
			s.write()
			_ = ctxsync.Sleep(ctx, writePause)
		case <-tick.C:
			s.opening.Lock()
			if s.file == nil {
				s.openNow(slog.LevelDebug)
				s.renewed.Store(true)
			}
			s.opening.Unlock()
			if s.renewed.Swap(false) {
				s.write()
			}
		case <-ctx.Done():
			return
		}
	}
}

// write writes records of the open mappings, of pending deletions and of mappings of an
// earlier run.
func (s *store) write() {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.file == nil {
		return
	}
	records := []state.Record{}
	s.forwarder.loop.Do(func() {
		s.unassigned = slices.DeleteFunc(s.unassigned, isObsolete)
		for _, m := range s.forwarder.held {
			if m.status().Spec.Once {
				continue
			}
			records = append(records, m.handle.Records()...)
		}
		records = append(records, s.unassigned...)
		for _, r := range s.forwarder.routes {
			records = append(records, r.client.Records()...)
		}
	})
	if err := s.file.Write(records); err != nil {
		s.forwarder.log.Warn("the state file cannot be written", "err", err)
		s.renewed.Store(true) // try again
	}
}

// isObsolete reports whether the recorded mapping has expired. A mapping without an end is
// obsolete if its gateway has not been found for obsoleteAfter.
func isObsolete(r state.Record) bool {
	at := r.Mapping.Expires()
	if at.IsZero() {
		at = r.Mapping.Granted.Add(obsoleteAfter)
	}
	return time.Now().After(at.Add(expiryTolerance))
}

// close writes the file for the last time and unlocks it.
func (s *store) close() {
	s.write()
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.file == nil {
		return
	}
	if err := s.file.Close(); err != nil {
		s.forwarder.log.Warn("the state file cannot be unlocked", "err", err)
	}
	s.file = nil
}
