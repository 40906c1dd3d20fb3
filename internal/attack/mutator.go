package attack

import (
	"bytes"
	"slices"
	"sync"
)

// Mutator changes answers as a program of bytes says, so that a fuzzer drives
// what becomes of a conversation. Where the program has ended, answers stay
// true. It may be used by several goroutines at once.
type Mutator struct {
	mu      sync.Mutex
	program []byte
	last    []byte // the answer before, as it was true
}

// NewMutator returns a Spoiler with a program.
func NewMutator(program []byte) *Mutator { return &Mutator{program: slices.Clone(program)} }

// What a step of a program does.
const (
	opEnd  = iota // ends the steps of this answer
	opSet           // a byte is another
	opFlip          // a bit is another
	opCut           // the rest is missing
	opAppend        // there is more
	opLose          // it does not come
	opReplay        // the answer before comes in its place
	opPut           // four bytes are a number that means something
	opInsert        // a few bytes come between
	opDelete        // a few bytes are missing
	opText          // the text of an element is another
	ops
)

// maxSteps bounds what is done to one answer.
const maxSteps = 8

// numbers are those that mean something: ports, lifetimes, addresses.
var numbers = [][]byte{
	{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 1}, {127, 0, 0, 1}, {224, 0, 0, 1}, {0x80, 0, 0, 0}, {10, 0, 0, 1}, {0, 0, 0x1c, 0x20},
}

// texts are those that elements of no honest device have.
var texts = []string{
	"", "0", "-1", "1", "65535", "65536", "4294967295", "TCP", "UDP", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255",
	"::1", "fe80::1%\u009b2J", "fe80::1%;id", "\u202e\u009b31m", "713", "714", "718", "725", "501", "402", "606", "&#x9b;", "<a/>",
	"http://127.0.0.77/", "]]>", "urn:schemas-upnp-org:service:WANIPConnection:1",
}

// Mutate returns what comes in the place of a true answer, nil where nothing
// does.
func (s *Mutator) Mutate(answer []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := bytes.Clone(answer)
	before := s.last
	s.last = answer
	for range maxSteps {
		switch op := s.next() % ops; op {
		case opEnd:
			return b
		case opLose:
			return nil
		case opReplay:
			b = bytes.Clone(before)
		default:
			b = s.change(op, b)
		}
	}
	return b
}

// change does a step that is about the bytes.
func (s *Mutator) change(op int, b []byte) []byte {
	at, value := s.place(len(b)), s.next()
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
		return slices.Insert(b, at, s.take(value%32)...)
	case opDelete:
		return slices.Delete(b, at, min(at+value, len(b)))
	case opText:
		return retext(b, at, texts[value%len(texts)])
	}
	return b
}

// retext gives the n-th element that has a text, counted round, another one.
func retext(b []byte, n int, text string) []byte {
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

// next takes a byte of the program; 0 follows its end.
func (s *Mutator) next() int {
	if len(s.program) == 0 {
		return 0
	}
	b := s.program[0]
	s.program = s.program[1:]
	return int(b)
}

// place takes an index from 0 to n.
func (s *Mutator) place(n int) int { return (s.next()<<8 | s.next()) % (n + 1) }

func (s *Mutator) take(n int) []byte {
	n = min(n, len(s.program))
	taken := s.program[:n]
	s.program = s.program[n:]
	return taken
}

// Seeds are programs of a [Mutator] for a fuzzer to begin with: one for each of
// its steps, at several answers of a conversation.
func Seeds() [][]byte {
	seeds := [][]byte{nil, {opEnd, opEnd, opLose}, {opReplay, opEnd, opReplay}}
	for op := byte(opSet); op < ops; op++ {
		for before := range 4 {
			for value := range byte(len(numbers)) {
				program := make([]byte, before) // leaves so many answers
				program = append(program, op, 0, 8+value, value, opEnd)
				seeds = append(seeds, program)
			}
		}
	}
	return seeds
}
