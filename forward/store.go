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

// store is what Config.StateFile is about: what this Forwarder has on gateways, recorded
// at each change, and what an earlier run left there. Without a path it only remembers
// what could not be deleted.
type store struct {
	forwarder *Forwarder
	path      string
	wake      chan struct{} // something is to be written
	renewed   atomic.Bool   // something lasts longer than the file says

	opening       sync.Mutex // held while the file is opened
	file          *state.File
	openAttempted bool // the file was opened, or is opened later

	unassigned []state.Record // mappings on gateways that are not in use, owned by the Forwarder's loop
}

// wantedWithin is how long a mapping of an earlier run waits to be enabled again.
var restoreGrace = 30 * time.Second // tests do not wait so long

const (
	obsoleteAfter   = 30 * 24 * time.Hour // for a mapping without an end, whose gateway is not met
	expiryTolerance = 10 * time.Minute    // of the file: a mapping lasts longer than it says
	writePause      = 250 * time.Millisecond
	writeEvery      = time.Minute // of what renewals change
)

// open opens the file before anything is requested. A file that cannot be had now is
// opened later.
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

// openNow is called with opening held.
func (s *store) openNow(level slog.Level) {
	f := s.forwarder
	file, records, err := state.Open(s.path)
	if err != nil {
		f.log.Log(f.ctx, level, "the state file is not as it should be", "file", s.path, "usable", file != nil, "err", err)
	}
	s.file = file
	f.loop.Do(func() {
		s.unassigned = append(s.unassigned, records...)
		for _, r := range f.routes {
			s.restore(r)
		}
	})
}

// adopt makes the owner of a route answer for what an earlier run left there. It runs on
// the loop.
func (s *store) restore(r *route) {
	gw, local := r.path.gateway.Addr(), r.path.local
	s.unassigned = slices.DeleteFunc(s.unassigned, func(row state.Record) bool {
		m := row.Mapping
		isThere := (!gw.IsValid() || gw == m.Gateway.Addr()) && (!local.IsValid() || local == m.Internal.Addr())
		return isObsolete(row) || isThere && r.client.Restore(row, restoreGrace)
	})
}

// nudge has the file written.
func (s *store) requestWrite() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes the file as often as something changes, until the Forwarder ends.
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

// write records what is held, and what is left.
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
		s.forwarder.log.Warn("the state file is not written", "err", err)
		s.renewed.Store(true) // and so tried again
	}
}

// isForgotten reports whether a gateway has nothing any more of what was left there, or
// was not met for long.
func isObsolete(r state.Record) bool {
	at := r.Mapping.Expires()
	if at.IsZero() {
		at = r.Mapping.Granted.Add(obsoleteAfter)
	}
	return time.Now().After(at.Add(expiryTolerance))
}

// close writes the file for the last time, and lets others have it.
func (s *store) close() {
	s.write()
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.file == nil {
		return
	}
	if err := s.file.Close(); err != nil {
		s.forwarder.log.Warn("the state file is not released", "err", err)
	}
	s.file = nil
}
