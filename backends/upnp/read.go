package upnp

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// tableReader reads the table of a service once, in the order of the index. It sends one
// request for each row, unless the device has shown that a faster method is safe: the whole
// table in two lists, or several requests at a time. On any doubt, it continues with one
// request for each row.
type tableReader struct {
	backend *Backend
	gateway *gateway
	client  *Client
	slow    time.Duration                        // see aheadAfter
	isGain  func(took, alone time.Duration) bool // see aheadAfter

	rows  []PortMapping   // the rows from index 0, until one was not read
	took  time.Duration   // of the requests for rows
	ready map[int]indexed // what get returns without a request
	seen  map[PortMappingKey]bool
	width int           // the number of requests to send at a time; 0 means one
	ahead int           // the number of rows that were requested several at a time
	spent time.Duration // of the requests for them
}

// indexed is the result of reading an index.
type indexed struct {
	entry PortMapping
	err   error
}

func (b *Backend) newTableReader(g *gateway, c *Client) *tableReader {
	return &tableReader{
		backend: b, gateway: g, client: c, slow: b.slowReply,
		isGain: func(took, alone time.Duration) bool { return took < alone*3/4 },
		ready:  map[int]indexed{}, seen: map[PortMappingKey]bool{},
	}
}

// entries yields the table by index, or by port ranges if the device does not
// support the index. It ignores malformed entries, but fails if there are no others.
func (r *tableReader) entries(ctx context.Context) iter.Seq2[PortMapping, error] {
	return func(yield func(PortMapping, error) bool) {
		first := true
		var ignored error
		for e, err := range entriesByIndex(ctx, r.get) {
			switch {
			case first && errors.Is(err, backends.ErrUnsupported) && r.client.service.Version() > 1:
				r.client.entriesByRange(ctx, yield)
				return
			case errors.Is(err, errIncomplete): // many devices report the end in this form
				continue
			case errors.Is(err, backends.ErrMalformed):
				ignored = err
				continue
			}
			if first = false; !yield(e, err) {
				return
			}
		}
		if first && ignored != nil {
			yield(PortMapping{}, ignored)
		}
	}
}

// get returns the row at an index. The indexes of successive calls follow each other.
func (r *tableReader) get(ctx context.Context, index int) (PortMapping, error) {
	if index == listAfter && len(r.rows) == index {
		r.readLists(ctx)
	}
	if _, isReady := r.ready[index]; !isReady && r.width > 0 {
		r.readAhead(ctx, index)
	}
	if row, isReady := r.ready[index]; isReady {
		delete(r.ready, index)
		return row.entry, row.err
	}
	begin := time.Now()
	e, err := r.client.PortMappingAt(ctx, index)
	if err == nil && len(r.rows) == index {
		r.rows = append(r.rows, e)
		r.took += time.Since(begin)
		if len(r.rows) == aheadAfter && r.took >= aheadAfter*r.slow && !r.quirks().remembers(atOnce) {
			r.width = 2
		}
	}
	if err == nil {
		r.seen[e.Key()] = true
	}
	return e, err
}

func (r *tableReader) quirks() *quirks { return r.backend.quirksOf(r.client) }

// The limits for reading the table in two lists. A table with more than listAfter rows is
// read in lists if it has more than minListed and at most maxListed rows: for a smaller one,
// the index needs fewer requests. A list with more than 128 rows crashes a common daemon, also
// if the request limits their number: the daemon selects the rows before it counts them. The
// table can grow between the request that finds its end and the lists, so maxListed is lower.
const (
	listAfter = 6
	minListed = 24
	maxListed = 100
)

// The names under which the quirks remember methods that failed, and for how long.
const (
	wholeTable = listAction + " for all ports"
	atOnce     = "GetGenericPortMappingEntry, several at once"
	methodTime = 10 * time.Minute
)

// errDoubtful means that the lists and the index do not show the same table.
var errDoubtful = errors.New("the lists and the index of the table differ")

// readLists reads the rest of the table in two lists, so that get returns it. The index shows
// the order of the rows and the end of the table.
func (r *tableReader) readLists(ctx context.Context) {
	if r.client.service.Version() < 2 || r.quirks().remembers(wholeTable) {
		return
	}
	beyond, err := r.client.PortMappingAt(ctx, minListed)
	if err != nil {
		return // a small table, or get finds the reason
	}
	lists, end, err := r.lists(ctx)
	if err == nil && end == nil {
		return // a large table
	}
	var rows []PortMapping
	if err == nil {
		rows, end, err = r.merge(ctx, lists, beyond, end)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.quirks().remember(wholeTable, methodTime)
		}
		r.backend.log.DebugContext(ctx, "upnp: the table is read by index", "err", err)
		return
	}
	for i, e := range rows[listAfter:] {
		r.ready[listAfter+i] = indexed{entry: e}
	}
	r.ready[len(rows)] = indexed{err: end}
}

// lists requests the lists of the TCP and the UDP rows, if the table has at most maxListed
// rows. end is the fault for index maxListed, or nil if there is such a row. Other calls in
// this process do not change the table in between.
func (r *tableReader) lists(ctx context.Context) (lists [2][]PortMapping, end, err error) {
	unlock, err := r.gateway.lockTable(ctx)
	if err != nil {
		return lists, nil, err
	}
	defer unlock()
	_, end = r.client.PortMappingAt(ctx, maxListed)
	switch {
	case end == nil:
		return lists, nil, nil
	case !isEndOfTable(end):
		return lists, nil, end
	}
	for i, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		err := r.backend.ask(ctx, r.client, wholeTable, func(ctx context.Context) (err error) {
			lists[i], err = r.client.listPorts(ctx, p, 1, 65535, maxWindow)
			return err
		})
		if err != nil && !isNotFound(err) {
			return lists, nil, err
		}
	}
	return lists, end, nil
}

// merge returns the rows of both lists in the order of the index, and the fault for the index
// after the last row. beyond is the row at index minListed, and beyondEnd is the fault for
// index maxListed. The order of each list is the one of its rows in the index, so merge
// requests a row by index only if TCP rows and UDP rows can follow it. It fails if a requested
// row is not the listed one, or if the index has another number of rows.
func (r *tableReader) merge(ctx context.Context, lists [2][]PortMapping, beyond PortMapping, beyondEnd error) ([]PortMapping, error, error) {
	m := merger{get: r.client.PortMappingAt, tcp: lists[0], udp: lists[1], positions: map[PortMappingKey]int{}}
	n := len(m.tcp) + len(m.udp)
	for _, list := range lists {
		for i, e := range list {
			m.positions[e.Key()] = i
		}
	}
	if n <= minListed || n > maxListed || len(m.positions) < n { // n is larger if a row is repeated
		return nil, nil, errDoubtful
	}
	end := beyondEnd
	if n < maxListed {
		if _, end = r.client.PortMappingAt(ctx, n); !isEndOfTable(end) {
			return nil, nil, errDoubtful
		}
	}
	m.rows = make([]PortMapping, n)
	for _, e := range r.rows {
		if err := m.next(ctx, m.done.index, e); err != nil {
			return nil, nil, err
		}
	}
	if err := m.next(ctx, minListed, beyond); err != nil {
		return nil, nil, err
	}
	if last := n - 1; last > minListed {
		e, err := m.get(ctx, last)
		if err == nil {
			err = m.next(ctx, last, e)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return m.rows, end, m.fill(ctx, m.done, place{n, len(m.tcp)})
}

// place is an index, and the number of TCP rows before it.
type place struct{ index, tcp int }

// merger merges the lists of the TCP rows and the UDP rows.
type merger struct {
	get       func(ctx context.Context, index int) (PortMapping, error)
	tcp, udp  []PortMapping
	positions map[PortMappingKey]int // the position of each row in its list
	rows      []PortMapping
	done      place // the rows before it are merged
}

// next merges the rows up to a later index, whose row the index shows.
func (m *merger) next(ctx context.Context, index int, e PortMapping) error {
	at, after, err := m.put(index, e)
	if err == nil {
		err = m.fill(ctx, m.done, at)
	}
	m.done = after
	return err
}

// put sets the row at an index. It returns the places of the row and of the next one. It fails
// if the row is not in the lists.
func (m *merger) put(index int, e PortMapping) (at, after place, err error) {
	position, isListed := m.positions[e.Key()]
	list, at := m.tcp, place{index, position}
	after = place{index + 1, position + 1}
	if e.Protocol == backends.UDP {
		list, at, after = m.udp, place{index, index - position}, place{index + 1, index - position}
	}
	if !isListed || !isSameRow(list[position], e) {
		return at, after, errDoubtful
	}
	m.rows[index] = list[position]
	return at, after, nil
}

// isSameRow reports whether two readings show the same row, within a minute.
func isSameRow(a, b PortMapping) bool {
	sameLease := (a.Lease == 0) == (b.Lease == 0) && (a.Lease-b.Lease).Abs() < time.Minute
	a.Lease = b.Lease
	return a == b && sameLease
}

// fill merges the rows between two places. If there are rows of both protocols, it requests
// the row in the middle. This is at most one request for every two rows.
func (m *merger) fill(ctx context.Context, from, to place) error {
	tcp := to.tcp - from.tcp
	udp := to.index - from.index - tcp
	switch {
	case tcp < 0 || udp < 0:
		return errDoubtful
	case udp == 0:
		copy(m.rows[from.index:to.index], m.tcp[from.tcp:])
		return nil
	case tcp == 0:
		copy(m.rows[from.index:to.index], m.udp[from.index-from.tcp:])
		return nil
	}
	middle := from.index + ((to.index-from.index)/2 | 1) // an odd number of rows before it needs fewer requests
	e, err := m.get(ctx, middle)
	if err != nil {
		return err
	}
	at, after, err := m.put(middle, e)
	if err == nil {
		err = m.fill(ctx, from, at)
	}
	if err == nil {
		err = m.fill(ctx, after, to)
	}
	return err
}

// A row takes a round trip and the time of the device. If the first aheadAfter rows took at
// least slowReply each, readAhead requests two rows at a time, and maxAtOnce after it has read
// aheadProof of them. It stops if the rows take longer than three quarters of the time for one
// after another. Fast devices gain nothing. Small devices serve one request at a time: after
// the first failure, one request is sent at a time again.
const (
	aheadAfter = 32
	aheadProof = 16
	slowReply  = 2 * time.Millisecond
	maxAtOnce  = 4
)

// readAhead requests the rows from an index, several at a time, so that get returns them. The
// rows from the first failure are not used. This includes the end of the table, because a busy
// device may return the same fault, and repeated rows, because a device may mix its responses.
func (r *tableReader) readAhead(ctx context.Context, index int) {
	number := min(r.width, maxIndex+1-index)
	rows, took, err := r.client.mappingsAt(ctx, index, number)
	for i, row := range rows {
		if err = row.err; err == nil && r.seen[row.entry.Key()] {
			err = errDoubtful
		}
		if err != nil {
			break
		}
		r.seen[row.entry.Key()] = true
		r.ready[index+i] = row
	}
	r.ahead += number
	r.spent += took
	switch {
	case err == nil && r.ahead < aheadProof:
		return
	case err == nil && r.isGain(r.spent, r.took/aheadAfter*time.Duration(r.ahead)):
		r.width = maxAtOnce
		return
	case ctx.Err() == nil && !isEndOfTable(err):
		r.quirks().remember(atOnce, methodTime)
	}
	r.width = 0
}

// mappingsAt requests the rows from an index at the same time, as one request in the queue.
// took is the time after the wait in the queue.
func (c *Client) mappingsAt(ctx context.Context, index, number int) (rows []indexed, took time.Duration, err error) {
	addr := c.addr()
	leave, err := enterQueue(ctx, &requestQueues, addr)
	if err != nil {
		return nil, 0, err
	}
	defer leave()
	begin := time.Now()
	ctx, cancel := withTimeout(context.WithValue(ctx, queuedKey{}, addr), optionalTimeout)
	defer cancel()
	rows = make([]indexed, number)
	var requests sync.WaitGroup
	for i := range rows {
		requests.Go(func() { rows[i].entry, rows[i].err = c.PortMappingAt(ctx, index+i) })
	}
	requests.Wait()
	return rows, time.Since(begin), nil
}

// queuedKey is the key of the address whose queue the caller has entered.
type queuedKey struct{}
