package main

import (
	"golang.org/x/sys/unix"
)

// Descriptors that are kept for the engine: the store's tables and write-ahead files,
// outputs, the worker, the log. A store of many tables needs more of them.
const (
	minReserved = 96
	maxReserved = 1024
)

// connectionsWithin is how many connections may be open where the process may have so
// many descriptors; the HTTP server has a bound of its own. A connection counts twice:
// what is asked through it may need a file, of a log or a long document. Go has raised the limit to the hard one when the process started; children
// get the one that it was started with.
func connectionsWithin(descriptors uint64) int {
	const most = 1 << 20 // no limit
	n := int(min(descriptors, most))
	n = (n - min(max(minReserved, n/4), maxReserved)) / 2
	// A quarter more are open for a moment, to be told that they are too many.
	return max(8, n-n/5)
}

// descriptorLimit is how many descriptors this process may have.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return limit.Cur
}
