// Command caravan is the server and the command line of Caravan: `caravan serve` runs graphs of
// tasks that are submitted over REST. The other commands talk to such a server, or, like `caravan
// run`, start one of their own. This is the only package that imports all others and connects them.
//
// # Output
//
// A command writes its result to standard output, so that it can be piped, and everything that is
// about the way to the result (progress, messages, logs, errors) to standard error. Errors are one
// line, "caravan: …"; a refused graph adds a line per problem. With -o json standard output has JSON
// alone, also when the exit code is not 0. Standard error keeps its form.
//
//	command            standard output                      with -o json
//	serve, worker      -                                    (the log has --log-format)
//	run                "run 7 COMPLETED: 2 COMPLETED, …"    the run's record, as GET /v1/dagrun/7 has it
//	submit             7                                    {"runID": 7}
//	submit --wait      7, then the line of wait             the run's summary
//	submit --lines     7 or - per line                      {"runID":7} or {"valid":false,…} per line
//	validate           valid                                {"valid", "error", "errors", "warnings"}
//	ls                 a table                              [summary, …], an element per line
//	get                facts, then a table of tasks         the run's record
//	get --task         a fact per line                      {"name", "state", and the task's definition}
//	logs               the raw bytes                        -
//	events             a line per change                    an object per line: client.Event
//	wait               "run 7 ERRORED: …"                   the run's summary
//	kill, pause, …     -                                    -
//	check              a line per finding, then the sum     checkReport
//	salvage            the same, then what was left out     salvageReport
//	backup -           the backup                           -
//	restore            -                                    -
//	cluster backup -   the backup                           -
//	cluster restore    -                                    -
//	cluster recover    a line or more per partition         recoveryReport
//	cluster init       -                                    -
//	cluster verify     a line per partition or replica      POST /v1/cluster/verify
//	cluster transfer   a line per partition                 the transfers of POST /v1/cluster/transfer
//	cluster repair     the replica, and the comparison      POST /v1/cluster/repair
//	cluster remove     "n4-4f1c… was removed"               POST /v1/cluster/remove
//	cluster upgrade    "the feature level is 1, it was 0"   POST /v1/cluster/upgrade
//	cluster worker     "big.1f3a… is dead, …"               POST /v1/cluster/worker/dead
//	cluster status     facts, then two tables               GET /v1/cluster
//	token new          the secret                           -
//	tls init, node, …  -                                    -
//	version            "caravan v1.2.3 …"                   {"version", …, "server": {…}}
//	completion, help   the script, the text                 -
//
// # Exit codes
//
// A command returns an error, and exitCode (errors.go) maps its kind to the code, whichever command
// it comes from. So the code says what happened and not where:
//
//	0    done, and for run, wait, events ID and submit --wait: the run is COMPLETED
//	1    anything else: a server that cannot start or go on, a damaged data folder, a conflict (409)
//	2    usageError: the command line, a variable, a file that the user names
//	3, 4 runEndedError: the run is ERRORED, KILLED
//	5    invalidError, client.ErrInvalid: the graph, or a limit on it
//	6    client.ErrNotFound
//	7    client.ErrUnreachable, client.ErrUnavailable
//	8    timeoutError, a deadline
//	9    client.ErrDenied
//	130  errInterrupted: the first signal ended the command before its work was done
//
// serve exits with 0 after the first signal, because stopping is then its work, and with 1 after the
// second one.
//
// # Signals
//
// Main.Run has two contexts. The first signal ends the one that commands get, with the cause
// errInterrupted; the second signal ends Main.forced. A command that must tidy up (kill its run, stop
// its server) does so under Main.forced. When it does not return within 0.6 s of the second signal,
// the process exits with 130 (signals.go).
//
// # Configuration of a server
//
// An option has one name in four places. A later place in this list wins over the former ones:
//
//	default      option.initial (options.go), partly of this machine (machine.go)
//	file         kill-grace: 10s
//	environment  CARAVAN_KILL_GRACE=10s
//	flag         --kill-grace 10s
//
// The closer a place is to the one start of the server, the stronger it is: a unit file or a
// container image sets the environment, and a person at a shell adds a flag to override it once.
// Values are text until all places are merged (config.go), and then each option is parsed once.
// Hence all places have the same notation, and a mistake in a value that a stronger place replaces
// is not an error. A list is replaced as a whole.
//
// The commands that talk to a server have a flag, then a variable, then a default, and no file
// (connect.go).
//
// # Life of a server
//
// runServer (serve.go) and startLocalServer (wiring.go) open the parts in this order, and close them
// in the reverse one:
//
//	listeners      addresses, tokens, certificates, audit log (listen.go)
//	data folder    lock and identity (internal/datafolder)
//	HTTP server    answers 503 until the engine is there (starting.go)
//	store          journal and snapshots (persistence)
//	outputs        output files (internal/outputs)
//	engine         executors, then the actors of unfinished runs (actors)
//
// A node of a cluster (`serve --node`) has replicas in place of the store, and its engines come and go
// with its leaderships: startNode (node.go).
//
// These functions say what another order would break. The worker is not in the list: it is a process
// of its own that the engine's executor starts or finds (executor/remote), in a session of its own,
// so that signals to the server's process group do not reach it. serve detaches from it, and its
// tasks go on; run closes it, and its tasks end.
//
// # Reading order
//
// main.go runs one command line, root.go lists the commands, errors.go has the exit codes, config.go
// and options.go are the configuration of a server, serve.go is its life, wiring.go connects the
// packages. The other files hold one or a few commands each.
package main
