// Package bench measures how long goforward takes beside other libraries and
// programs, in one run on one machine: cold starts behind a real router, warm
// calls, and what ten thousand mappings cost.
//
//	make bench                           # from the root of the repository; writes RESULTS.md and results.json
//	go test .                            # one round of a few, so that the tool does not rot
//	go test -run '^$' -bench . -benchmem # the warm calls as ordinary benchmarks
//
// All that is compared is interleaved: each round asks everybody once, in an order
// drawn from a seed that is printed, so that what disturbs the machine disturbs all
// alike. Medians and the medians of ratios within a round come with a confidence interval.
package bench
