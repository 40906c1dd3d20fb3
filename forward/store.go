package forward

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/state"
)

// store is what Config.StateFile is about: what this Forwarder has on gateways, recorded
// at each change, and what an earlier run left there. Without a path it only remembers
// the deletions that got no reply.
type store struct {
	forwarder *Forwarder
	path      string
	wake      chan struct{} // something is to be written
	renewed   atomic.Bool   // something lasts longer than the file says

	opening sync.Mutex // held while the file is opened
	file    *state.File
	tried   bool // the file was opened, or is opened later

	left []leftRow // owned by the Forwarder's loop
}

// leftRow is a mapping on a gateway that no handle holds.
type leftRow struct {
	state.Record
	ours bool // this run has asked for its deletion
}

// wantedWithin is how long a mapping of an earlier run waits to be enabled again.
var wantedWithin = 30 * time.Second // tests do not wait so long

const (
	forgetAfter = 30 * 24 * time.Hour // for a mapping without an end, whose gateway is not met
	staleness   = 10 * time.Minute    // of the file: a mapping lasts longer than it says
	writePause  = 250 * time.Millisecond
	writeEvery  = time.Minute // of what renewals change
)

// open opens the file before anything is requested. A file that cannot be had now is
// opened later.
func (s *store) open() {
	if s.path == "" {
		return
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if !s.tried {
		s.tried = true
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
		for _, r := range records {
			s.left = append(s.left, leftRow{Record: r})
		}
		for _, r := range f.known {
			s.adopt(r)
		}
	})
}

// adopt makes the owners of a route answer for what an earlier run left there. It runs on
// the loop.
func (s *store) adopt(r *route) {
	for _, row := range s.left {
		m := row.Mapping
		gw := r.place.gateway.Addr()
		reached := (!gw.IsValid() || gw == m.Gateway.Addr()) && (!r.place.local.IsValid() || r.place.local == m.Internal.Addr())
		if !reached || row.ours || isForgotten(row.Record) {
			continue
		}
		r.client.Adopt(row.Port, m, wantedWithin)
	}
}

// remains records a mapping whose deletion got no reply.
func (s *store) remains(port uint16, m backends.Mapping) {
	s.settled(m)
	s.left = append(s.left, leftRow{state.Record{Port: port, Mapping: m}, true})
	s.nudge()
}

// settled forgets a mapping that is deleted or taken over.
func (s *store) settled(m backends.Mapping) {
	s.left = slices.DeleteFunc(s.left, func(r leftRow) bool {
		return r.Mapping.Backend == m.Backend && r.Mapping.Protocol == m.Protocol && r.Mapping.Internal == m.Internal && r.Mapping.External == m.External
	})
	s.nudge()
}

// nudge has the file written.
func (s *store) nudge() {
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
			gateway.Sleep(ctx, writePause)
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
		s.left = slices.DeleteFunc(s.left, func(r leftRow) bool { return isForgotten(r.Record) })
		for _, m := range s.forwarder.held {
			if m.status().Wish.Once {
				continue
			}
			for _, granted := range m.State() {
				records = append(records, state.Record{Port: m.handle.Port, Mapping: granted})
			}
		}
		for _, r := range s.left {
			records = append(records, r.Record)
		}
	})
	if err := s.file.Write(records); err != nil {
		s.forwarder.log.Warn("the state file is not written", "err", err)
		s.renewed.Store(true) // and so tried again
	}
}

// isForgotten reports whether a gateway has nothing any more of what was left there, or
// was not met for long.
func isForgotten(r state.Record) bool {
	at := r.Mapping.Expires()
	if at.IsZero() {
		at = r.Mapping.Granted.Add(forgetAfter)
	}
	return time.Now().After(at.Add(staleness))
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
