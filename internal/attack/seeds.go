package attack

// Seeds are programs of a [Mutator] for a fuzzer to begin with: one for each of
// its steps, at several answers of a conversation.
func Seeds() [][]byte {
	seeds := [][]byte{nil, {opLeave, opLeave, opLose}, {opReplay, opLeave, opReplay}}
	for op := byte(opSet); op < ops; op++ {
		for before := range 4 {
			for value := range byte(len(numbers)) {
				program := make([]byte, before) // leaves so many answers
				program = append(program, op, 0, 8+value, value, opLeave)
				seeds = append(seeds, program)
			}
		}
	}
	return seeds
}
