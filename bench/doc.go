// Command bench measures the real binary next to references in the same run. Each workload starts a
// fresh server with fresh data and relates its result to that of `make -j2`, xargs, a C loop, the
// server's own GET /ready or another engine, measured in the same minute on the same machine. Trust
// the ratios: absolute figures depend on the machine.
//
//	go run ./bench [--rounds N] [--json] [--smoke] [--large] WORKLOAD …|all
//	go run ./bench [--rounds N] [--into FOLDER] report
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
// The rounds of a workload and of its references alternate. The table shows medians, with the target
// and whether it is met. The row of a reference names what the machine lacks for it; `make
// bench-peers` installs it. All systems run the same program with the same small environment,
// because a further variable or argument costs as much as what is measured here.
//
// --smoke runs shorter workloads without the other engines, and exits 1 below the floors, which the
// table shows, too. They are far below the usual figures, and a workload below its floor is measured
// a second time. report writes table, figures and charts into bench/report. With --figures it makes
// them from the figures of an earlier report, without measuring.
//
// The rows of w2 show where the time of a process goes. CPU is user and system time. A context switch
// is one of any thread, voluntary or not, as /proc/PID/task/*/status counts them. The usage of a child
// is known when its parent waits for it. For the tasks of Caravan this program waits for the worker,
// which it inherits by killing the server. The number of switches is the same on slow and fast
// machines, so its floors are near the usual figures.
//
// --against measures another binary in the same rounds, in turn, and prints the ratio of the pairs for
// each figure. It compares a change with the binary before it.
//
// main.go has the flags, measure.go the rounds, rows, bounds and comparisons, workloads.go all
// workloads with their targets and floors. throughput.go, processes.go, recovery.go and scale.go
// measure them. graphs.go has their graphs, client.go the load generator, references.go the
// references, usage.go reads what processes use. report.go writes the table, charts.go draws the
// charts. The program for River is a module of its own (peers/river), so that Caravan does not depend
// on its libraries.
package main
