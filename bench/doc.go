// Command bench measures the real binary next to references in the same run. Each workload starts a
// fresh server with fresh data and relates its result to that of `make -j2`, xargs, a C loop, the
// server's own GET /ready or another engine, measured in the same minute on the same machine. Trust
// the ratios: absolute figures depend on the machine.
//
//	go run ./bench [--rounds N] [--json] [--smoke] [--large] WORKLOAD …|all
//	go run ./bench [--rounds N] [--into FOLDER] report [WORKLOAD …]
//	go run ./bench --figures bench/report/figures.json report
//	go run ./bench [--rounds N] --against BINARY WORKLOAD …|all
//
// The workloads, and their references in brackets:
//
//	w1       1 -> N -> 1, no-op, N = 10,000 [make -j2, River, Dask]
//	w1m      the same, N = 1,000,000: rate, acceptance, memory, bytes to the disk
//	w2       1 -> N -> 1 of /bin/true, N = 10,000: rate, processor time and context switches of
//	         server, worker, tasks, and of each reference and its children
//	         [make -j2, ninja -j2, xargs -P2, a C loop of vfork, River, Dask]
//	w3       durable submissions, 64 connections, and in batches of 100 [GET /ready, River]
//	w4       a chain of 1,000 no-ops [make -j2, River, Dask]
//	w5       10 layers of 100, all to all, no-op [make -j2]
//	output   one task that prints 10 GiB, 64 MiB of which are kept
//	empty    one no-op, from submission to COMPLETED [River, Dask]
//	w6       kill -9 of the server, three times in the middle of a run: the time until the next
//	         server continues, and the tasks that are lost or run twice, by lines that they append
//	recovery kill -9 with half of 1,000,000 tasks done: the time to /ready and to the next task
//	open     from the start of a server to /ready, with a run of 1,000,000 finished tasks, 200,000
//	         queued runs, 1,000,000 finished runs: after a kill -9, after a clean end, without
//	         verification [cat of the same tables]
//	views    list, summary, state and a page of tasks while 1,000,000 run; then the full document
//	memory   bytes per queued task: the difference of queued runs of 1,000,000 and 10,000,000 tasks
//	growth   fan-outs from 1,000 to 1,000,000 tasks (10,000,000 with --large and in the report):
//	         whether the cost of a task depends on the size of its run
//	fairness a small run behind 1,000,000 tasks and on an idle server; 1,000 runs at once
//	metg     the length of a process at which half of the time is useful work, 2 slots
//	         [make -j2, ninja -j2, River, Dask]
//
//	cluster-rates     submissions, no-ops and hops of a chain with 3 nodes [one node]
//	cluster-idle      processor time and memory of a node that has nothing to do [one node]
//	cluster-stop      SIGTERM of a node that leads: failed calls, and the longest gap between answers
//	cluster-failover  kill -9 of a node that leads, with its disk, in the middle of runs of processes:
//	                  the gaps between answers, and the tasks that are lost or run twice
//
// The name cluster means the last four together. The nodes of a cluster, the single node and the load share
// this machine and its disk.
//
// All systems run the same program with the same small environment, because a further variable or
// argument costs as much as what is measured here. The row of a reference names what the machine
// lacks for it; `make bench-peers` installs it.
//
// # Rounds, ratios and pairs
//
// A round measures Caravan on a fresh server with fresh data, and then each reference in a fresh
// folder on the same file system. The rounds of a workload follow each other, so Caravan and its
// references alternate. A ratio is computed from the two figures of one round, and the table shows the
// median of these ratios with the median of each figure, the target and whether it is met. So the ratio
// in a row may differ a little from the quotient of the figures in the table. open, growth and metg
// have a single round: they take long, and repeat or vary the measurement within it.
//
// --against compares a change with the binary before it. A pair is one round with each binary, and the
// binary that begins changes from pair to pair, so that neither always comes second. The table has the
// median ratio of the pairs, and their range. make, ninja, xargs and the C loop are measured in both
// halves of a pair, so their ratio should be 1: how far it is from that is the noise of the machine.
//
// # Units
//
//	tasks/s  all tasks of the graph (n+2 of a fan), divided by the time from the first byte of the
//	         submission to the answer that says COMPLETED
//	ms, s    elapsed time
//	us       microseconds: of processor time, user and system, where the metric says CPU; elapsed
//	         otherwise
//	B        bytes per transition or task; a no-op task has two transitions
//	MB       1,000,000 bytes: output and documents
//	MiB      1 << 20 bytes: memory
//	x        a ratio; "x the speed" is the quotient of two times, so more is faster in both forms
//	%        processor time in percent of one core
//	(none)   counts, context switches per task, and shares from 0 to 1
//
// # What disturbs a figure
//
//   - Caravan, the load generator and the references share the processors. The client is minimal
//     (client.go), and polls once a millisecond or waits in the server. What it takes counts against
//     Caravan alone.
//   - The first task of a server also pays for the start of the worker and for cold code. Most
//     workloads run a small graph first and measure from then on.
//   - The kernel shows the processor time of a process in steps of 10 ms. That is 1 us per task at
//     10,000 tasks, and 10 us at 1,000: the first point of the growth of CPU can be a single step.
//   - A server is polled for /ready every 5 ms, so a start is measured in steps of that length.
//   - The data folder decides what a sync costs. On a tmpfs a sync does not do anything and written
//     bytes are not counted; name a folder on a disk by --data when the temporary folder is one.
//   - All files are in the page cache. A disk that must be read makes each start slower.
//   - Other load lengthens single rounds, and the processors of a virtual machine are not equally fast
//     all day. Compare ratios, take an odd number of rounds, and look at the load above the table: it
//     is the average of the last minute, which includes the benchmark itself.
//
// --smoke runs shorter workloads without the other engines, and exits 1 below the floors, which the
// table shows, too. They are far below the usual figures, and a workload below its floor is measured
// a second time. report writes table, figures and charts into bench/report. Of named workloads it replaces
// the figures there, and keeps those of the others. With --figures it makes the report from the figures of
// an earlier one, without measuring.
//
// The rows of w2 show where the time of a process goes. CPU is user and system time. A context switch
// is one of any thread, voluntary or not, as /proc/PID/task/*/status counts them. The usage of a child
// is known when its parent waits for it. For the tasks of Caravan this program waits for the worker,
// which it inherits by killing the server. The number of switches is the same on slow and fast
// machines, so its floors are near the usual figures.
//
// main.go has the flags, measure.go the rounds, rows, bounds and comparisons, workloads.go all
// workloads with their targets and floors. throughput.go, processes.go, recovery.go and scale.go
// measure them, cluster.go and failover.go those of clusters, which nodes.go starts. graphs.go has their graphs, client.go the load generator, references.go the
// references, usage.go reads what processes use. report.go writes the table, charts.go draws the
// charts. The program for River is a module of its own (peers/river), so that Caravan does not depend
// on its libraries.
package main
