// Package e2e holds the end-to-end tests: the real binary, started as a user
// starts it, driven over REST and the command line, killed and started again. It
// has no code of its own.
//
//	contract_test.go   each row of the REST table, by field names, types and shapes
//	record_test.go     where a job runs and what its attempts record, kills that outlive the server
//	semantics_test.go  what runs, retries, generators, restarts, pauses mean
//	kill_test.go       kills of runs and tasks
//	crash_test.go      kill -9 of the server at random moments, and right after a 200
//	worker_test.go     kill -9 and SIGSTOP of server and worker, in the middle of a run
//	thousand_test.go   1,000 tasks with few descriptors, few processes, errors of the worker's disk
//	atonce_test.go     very many processes at the same time
//	diskerrors_test.go  errors of the disk under the server's log, the folder's identity and the output
//	pause_test.go      SIGSTOP of server, worker and both under load
//	groups_test.go     control groups that killed workers leave
//	worker_shortage_test.go  tasks with few descriptors, few processes; a worker that hangs
//	slow_test.go       programs and folders that hang, beside everything else
//	secrets_test.go    what a task sees of the server
//	adoption_test.go   SIGTERM, upgrade, and what holds for tasks that outlive their server
//	backup_test.go     backup and restore, the drill of docs/operations.md too
//	copies_test.go     a copied data folder beside its original
//	damage_test.go     files of the data folder damaged at random
//	powercut_test.go   power cuts of the device under the data folder
//	damagedworker_test.go  damaged files of a worker that was killed
//	disk_test.go       a full disk
//	tables_test.go     damaged tables and manifests
//	check_test.go      check and salvage
//	folder_test.go     any path, the rights and the parts of a data folder
//	hostile_test.go    malformed requests, slow and gone clients
//	shutdown_test.go   SIGTERM while clients ask
//	large_test.go      a run of 10,000 tasks answers while it runs
//	scale_test.go      fairness, views and documents beside very large runs
//	soak_test.go       a load that does not end: nothing grows
//	views_test.go      what pages and tools watch large runs by
//	metrics_test.go    what /metrics has is what the documents say
//	clock_test.go      the clock of the machine is set; restarts beside running tasks; keys that outlive their runs
//	door_test.go       what web pages may do
//	access_test.go     tokens, unix sockets, TLS, the audit log
//	cli_test.go        the command line: exit codes, logs -f
//	examples_test.go   every file of examples/ runs to COMPLETED
//	process_test.go    damaged output files, what tasks leave behind, odd commands, signals of the terminal
//	slurm_test.go      tasks as jobs of a real Slurm (tag slurm; see make test-slurm)
//
// Flags (after -args, or directly: go test ./internal/e2e -kills 100):
//
//	-seed N     seed of everything random; it is printed by each test that uses it
//	-kills N    kills of the random-moments test (20)
//	-acked N    acknowledged submissions of the kill-after-200 test (1000)
//	-rounds N   rounds of the tests in worker_test.go (2)
//	-damages N  damaged data folders (40); cases of disk errors, a tenth of it of each test
//	-cuts N     power cuts (3); they need root and an ext4 on a loop device
//	-hostile N  malformed requests (10000)
//	-sizes big  runs of 1,000,000 tasks in scale_test.go, 10,000 processes in atonce_test.go
//	-copies N   copies in copies_test.go (2)
//	-pause D    how long pause_test.go stops processes (3s); 65s is longer than the limit of a commit
//	-soak D     how long soak_test.go keeps its load up (10s)
//
// Under the race detector all numbers are a tenth of that, and of the errors of a disk each
// test has one case.
//
// CARAVAN_BINARY names a binary to test in place of one built from the tree.
package e2e
