// Package e2e holds the end-to-end tests. They start the real binary as a user does, drive it over
// REST and the command line, and kill and restart it. The package has only tests.
//
//	rest_contract_test.go     each row of the REST table: field names, types, shapes
//	semantics_test.go         expansion, retries, generators, restarts, pauses, attempt records
//	kill_test.go              kills of runs and tasks
//	server_crash_test.go      kill -9 of the server at random moments, after a 200, during retention
//	worker_test.go            kills, stops and upgrades of server and worker; adopted tasks
//	control_groups_test.go    control groups that killed workers leave
//	shortage_test.go          few descriptors, few processes, journal errors, many processes
//	hanging_start_test.go     programs and folders on file systems that hang
//	disk_full_test.go         a full disk
//	disk_faults_test.go       failing calls of the file system, and power cuts
//	random_damage_test.go     files of the data folder damaged at random
//	damaged_files_test.go     damaged tables, logs, summaries and worker files
//	check_test.go             check and salvage
//	backup_test.go            backup and restore, and copies of data folders
//	data_folder_test.go       paths, permissions and contents of data folders
//	access_test.go            tokens, unix sockets, TLS, web pages, isolation of tasks
//	hostile_requests_test.go  malformed requests, slow and disconnecting clients
//	server_process_test.go    shutdown, signals, terminals, containers, unusual commands
//	large_runs_test.go        fairness, views and documents of large runs
//	views_test.go             long polls, state vectors, graphs, events, metrics
//	clock_test.go             changes of the machine's clock
//	cli_test.go               the command line: exit codes, logs -f
//	examples_test.go          every file of examples/ runs to COMPLETED
//	soak_test.go              constant load without growth
//	slurm_test.go             tasks on a real Slurm (tag slurm; see make test-slurm)
//	main_test.go              flags, and a client that writes raw requests
//
// Flags (go test ./internal/e2e -kills 100):
//
//	-seed N     seed of all random choices; each test that uses it prints it
//	-kills N    kills at random moments (20)
//	-acked N    acknowledged submissions of the kill-after-200 test (400)
//	-rounds N   rounds of the tests that kill server and worker (2)
//	-damages N  damaged data folders (30); a tenth of it are cases of disk errors of each test
//	-cuts N     power cuts (3); they need root and an ext4 on a loop device
//	-hostile N  malformed requests (3000)
//	-sizes big  runs of 1,000,000 tasks in large_runs_test.go, 10,000 concurrent processes
//	-copies N   copies of a data folder (2)
//	-pause D    how long worker_test.go stops processes (3s); 65s exceeds the limit of a commit
//	-soak D     how long soak_test.go keeps its load (4s)
//
// Under the race detector all numbers are a tenth of that, and each test of disk errors has one
// case.
//
// CARAVAN_BINARY names a binary to test instead of one built from the tree.
package e2e
