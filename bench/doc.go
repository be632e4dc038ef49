// Command bench measures the real binary beside references of the same run: each
// workload starts a fresh server with fresh data, runs, and says how it did in
// proportion to what `make -j2`, xargs, a C loop or the server's own GET /ready
// did in the same minute on the same machine. Trust the ratios; the absolute
// figures are the machine's.
//
//	go run ./bench [--rounds N] [--json] [--smoke] w1|w2|w3|w4|w5|output|empty|all …
//
//	w1     1 -> N -> 1, no-op, N = 10,000          beside make -j2
//	w2     1 -> N -> 1 of /bin/true, N = 2,000     beside make -j2, xargs -P2, a C vfork loop
//	w3     durable submissions, 64 connections, and
//	       in batches of 100                       beside GET /ready
//	w4     a chain of 1,000 no-ops                 beside make -j2
//	w5     10 layers of 100, all to all, no-op     beside make -j2
//	output one task that prints 10 GiB, of which 64 MiB are kept
//	empty  one no-op, from submission to COMPLETED (median and 99th percentile)
//
// The rounds of a workload and of its references alternate; the table shows
// medians. --smoke takes shorter workloads and exits 1 below the floors that are
// in the table's last column.
//
// main.go has the flags and the rounds, workloads.go what is submitted, peers.go
// the references, load.go the load generator, report.go the table.
package main
