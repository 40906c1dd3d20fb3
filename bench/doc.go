// Package bench compares the speed of goforward with other libraries and programs, in one
// run on one machine. It measures cold starts behind a real router, warm calls, and the
// memory and processor time of ten thousand mappings.
//
//	make bench                           # from the root of the repository; writes RESULTS.md and results.json
//	make bench-downtime                  # downtime after restarts of a router; writes RESULTS.md and downtime.json
//	go test .                            # one round of a few measurements, to check that the tool works
//	go test -run '^$' -bench . -benchmem # the warm calls as ordinary benchmarks
//
// The measurements are interleaved. Each round runs every candidate once, in an order drawn
// from a printed seed, so that other load on the machine affects all candidates alike. Each
// median, and each median of the ratios within a round, has a confidence interval.
package bench
