package attack

import (
	"bytes"
	"slices"
	"sync"
)

// Mutator changes responses as a program specifies. A program is a sequence of
// bytes, so that a fuzzer controls a conversation. After the end of the program,
// responses stay unchanged. A Mutator is safe for concurrent use.
type Mutator struct {
	mu      sync.Mutex
	program []byte
	last    []byte // the previous response, unchanged
}

// NewMutator returns a Mutator that runs a program.
func NewMutator(program []byte) *Mutator { return &Mutator{program: slices.Clone(program)} }

// The operations of a program.
const (
	opEnd    = iota // end the changes of this response
	opSet           // replace a byte
	opFlip          // flip a bit
	opCut           // cut off the rest
	opAppend        // append bytes
	opDrop          // drop the response
	opReplay        // send the previous response instead
	opPut           // write one of numbers
	opInsert        // insert a few bytes
	opDelete        // delete a few bytes
	opText          // replace the text of an element
	ops
)

// maxSteps limits the operations on one response.
const maxSteps = 8

// numbers are special values: ports, lifetimes, addresses.
var numbers = [][]byte{
	{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1}, {127, 0, 0, 1}, {224, 0, 0, 1}, {0x80, 0, 0, 0}, {10, 0, 0, 1}, {0, 0, 0x1c, 0x20},
}

// texts are element texts that no regular device sends.
var texts = []string{
	"", "0", "-1", "1", "65535", "65536", "4294967295", "TCP", "UDP", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255",
	"::1", "fe80::1%\u009b2J", "fe80::1%;id", "\u202e\u009b31m", "713", "714", "718", "725", "501", "402", "606", "&#x9b;", "<a/>",
	"http://127.0.0.77/", "]]>", "urn:schemas-upnp-org:service:WANIPConnection:1",
}

// Mutate returns the response to send instead of the given one, or nil to send
// none.
func (m *Mutator) Mutate(response []byte) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := bytes.Clone(response)
	before := m.last
	m.last = response
	for range maxSteps {
		switch op := m.next() % ops; op {
		case opEnd:
			return b
		case opDrop:
			return nil
		case opReplay:
			b = bytes.Clone(before)
		default:
			b = m.change(op, b)
		}
	}
	return b
}

// change applies an operation that edits bytes.
func (m *Mutator) change(op int, b []byte) []byte {
	at, value := m.index(len(b)), m.next()
	switch op {
	case opSet, opFlip:
		if at < len(b) && op == opSet {
			b[at] = byte(value)
		} else if at < len(b) {
			b[at] ^= 1 << (value % 8)
		}
	case opCut:
		return b[:at]
	case opAppend:
		return append(b, bytes.Repeat([]byte{byte(value)}, at%64)...)
	case opPut:
		copy(b[at:], numbers[value%len(numbers)])
	case opInsert:
		return slices.Insert(b, at, m.take(value%32)...)
	case opDelete:
		return slices.Delete(b, at, min(at+value, len(b)))
	case opText:
		return replaceText(b, at, texts[value%len(texts)])
	}
	return b
}

// replaceText replaces the text of the n-th element that has a text. n is taken modulo
// the number of these elements.
func replaceText(b []byte, n int, text string) []byte {
	var starts []int
	for i := 0; i+1 < len(b); i++ {
		if b[i] == '>' && b[i+1] != '<' {
			starts = append(starts, i+1)
		}
	}
	if len(starts) == 0 {
		return b
	}
	start := starts[n%len(starts)]
	end := bytes.IndexByte(b[start:], '<')
	if end < 0 {
		end = len(b) - start
	}
	return slices.Concat(b[:start], []byte(text), b[start+end:])
}

// next takes the next byte of the program. After the end of the program, it returns
// 0.
func (m *Mutator) next() int {
	if len(m.program) == 0 {
		return 0
	}
	b := m.program[0]
	m.program = m.program[1:]
	return int(b)
}

// index takes two bytes of the program and returns an index from 0 to n.
func (m *Mutator) index(n int) int { return (m.next()<<8 | m.next()) % (n + 1) }

// take takes up to n bytes of the program.
func (m *Mutator) take(n int) []byte {
	n = min(n, len(m.program))
	taken := m.program[:n]
	m.program = m.program[n:]
	return taken
}

// Seeds returns programs of a [Mutator] for a fuzzer's corpus: one for each
// operation and value, at each of the first responses of a conversation.
func Seeds() [][]byte {
	seeds := [][]byte{nil, {opEnd, opEnd, opDrop}, {opReplay, opEnd, opReplay}}
	for op := byte(opSet); op < ops; op++ {
		for before := range 4 {
			for value := range byte(len(numbers)) {
				program := make([]byte, before) // leaves this many responses unchanged
				program = append(program, op, 0, 8+value, value, opEnd)
				seeds = append(seeds, program)
			}
		}
	}
	return seeds
}
