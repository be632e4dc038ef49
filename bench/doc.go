// Command bench measures the real binary beside references of the same run: each
// workload starts a fresh server with fresh data, runs, and says how it did in
// proportion to what `make -j2`, xargs, a C loop, the server's own GET /ready or
// another engine did in the same minute on the same machine. Trust the ratios; the
// absolute figures are the machine's.
//
//	go run ./bench [--rounds N] [--json] [--smoke] [--large] WORKLOAD …|all
//	go run ./bench [--rounds N] [--into FOLDER] report
//	go run ./bench [--rounds N] --against BINARY WORKLOAD …|all
//
//	w1       1 -> N -> 1, no-op, N = 10,000          beside make -j2, River, Dask
//	w1m      the same, N = 1,000,000: rate, acceptance, memory, bytes to the disk
//	w2       1 -> N -> 1 of /bin/true, N = 10,000    beside make -j2, ninja -j2, xargs -P2, a C loop of
//	         vfork, River, Dask; the processor time and the context switches of server, worker, tasks,
//	         and of each reference and its children
//	w3       durable submissions, 64 connections,
//	         and in batches of 100                   beside GET /ready, River
//	w4       a chain of 1,000 no-ops                 beside make -j2, River, Dask
//	w5       10 layers of 100, all to all, no-op     beside make -j2
//	output   one task that prints 10 GiB, of which 64 MiB are kept
//	empty    one no-op, from submission to COMPLETED beside River, Dask
//	w6       kill -9 of the server, three times in mid-run: how long until the next one goes on, and
//	         which tasks are lost or ran twice, by lines that they append
//	recovery kill -9 with half of 1,000,000 tasks done: how long to /ready and to the next task
//	open     from the start of a server to /ready, over a run of 1,000,000 finished tasks, 200,000
//	         runs that wait, 1,000,000 finished runs: after a kill -9, after a clean end,
//	         without verification                    beside cat of the same tables
//	views    list, summary, state and a page of tasks while 1,000,000 run; then the full document
//	memory   bytes per queued task: the difference of runs of 1,000,000 and 10,000,000 that wait
//	growth   fan-outs from 1,000 to 1,000,000 tasks (10,000,000 with --large and in the report):
//	         whether a task costs the same in each
//	fairness a small run behind 1,000,000 tasks and behind none; 1,000 runs at once
//	metg     the length of a process at which half of the time is useful work, 2 slots
//	                                                 beside make -j2, ninja -j2, River, Dask
//
// The rounds of a workload and of its references alternate; the table shows medians,
// with the target and whether it is met. What a reference needs and the machine lacks is
// named in the reference's row; `make bench-peers` installs it. All run the same program
// with the same small environment: a variable or an argument more costs as much as
// what is measured here.
//
// --smoke takes shorter workloads without the other engines and exits 1 below the
// floors, which the table has, too. They are far below what is
// usual, and what is below is measured a second time. report writes table, figures and
// charts into bench/report.
//
// The rows of w2 tell where the time of a process goes. CPU is user and system time; a context
// switch is one of any thread, voluntary or not, as /proc/PID/task/*/status counts them. What a
// child had is known when its parent waits for it: for the tasks of Caravan, when this program
// waits for the worker, which it inherits by killing the server. The number of switches is the
// same on a slow machine and on a fast one, so its floors are near what is usual.
//
// --against measures another binary in the same rounds, in turn, and prints for each figure the
// ratio of the pairs (against.go). A change is held against the binary before it in this way.
//
// main.go has the flags and the rounds, workloads.go all workloads with their targets and
// floors, usage.go reads what processes use, peers.go and engines.go the references, load.go the load generator, report.go
// the table, charts.go and svg.go the charts. The program for River is a module of its own
// (peers/river), so that what it needs is no dependency of Caravan's.
package main
