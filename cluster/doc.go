// Package cluster makes several processes one service: each has replicas of partitions, and the engine of a
// partition runs where its replicated log is led. Nothing of it runs on a single node.
//
// A partition is the whole engine of a single node (package actors over a persistence.RunStore). In place
// of a synced file its commits go to a group of package raftlog: the leader decides what to write, the log
// carries the rows, and every replica writes them down. Run r is of partition r mod P.
//
// # What a caller may rely on
//
//  1. A run that was acknowledged is on the disks of a majority. It is found at whichever node leads its
//     partition later, and goes on there.
//  2. An engine of an earlier term changes no row once a later one has begun. At most one engine of a
//     partition is published on a node, and none starts before the store of the one before is closed and
//     the log has answered its proposals.
//  3. Directory.HasLease tells whether an answer may be sent. An engine that was published may have lost
//     its leadership a moment ago: without the lease its answers may be old.
//  4. All listed nodes together form the cluster, once. A node that lost its folder, or a part of it, does
//     not come back under its old ID. A new node of its name may take its place (Config.Replace).
//  5. An error of a disk is fatal for the process (Config.Fatal). A lost leadership ends an engine alone.
//
// # Duties of the caller
//
//  1. It gives each node its own folder, and the same list of nodes and number of partitions.
//  2. It ends the process when Config.Fatal is called.
//  3. It asks for the lease after each read, and sends the answer only then.
//  4. The executors that Config.Engine names are of that engine alone: executor.Shared has a front for
//     each.
//  5. It stops serving before Close. Stop hands the leaderships over first.
//
// # Goroutines
//
//	host.run             one for each partition: starts and ends engines
//	leadership.awaitLog  one for each proposal, until the log has answered it
//	callAfter            one while an engine ends, which reports an end that takes too long
//	machine.Verify       one for each digest
//	machine.replaceRows  one that closes the former rows
//	port, introducer,    accept connections, and one for each greeting
//	  admitter
//	seekAdmission        one while the node takes the place of another one
//	announcer            one that composes, one for each other node, and those that
//	                     accept and receive
//	clockComparer        one for each other node
//	balancer             one with several partitions
//	tableKeeper          one that keeps the table of the nodes, and one while a newer table is fetched
//	answerInquiries,     accept connections, and one for each question or copy
//	  answerWorkers,
//	  sendCopies
//	beginRepair          one for each repair of a replica of this node
//	raftlog, actors      their own; raftlog calls the machine on those of its library
//
// machine.Restore runs on a goroutine of the log, and waits until the host has ended its engine. The
// library answers no proposal in the meantime, so the host abandons them: that is the one place where two
// of these goroutines wait for each other.
//
// # Locks
//
// machine.mu, host.mu, Member.mu, introducer.mu, announcer.mu, clockComparer.mu, port.mu and protocolListener.mu are
// leaves: no call leaves the package under them. machine.writing is held over the writes of replica.json,
// and is taken before machine.mu. machine.exchanging is held over an exchange of the rows, within the calls of
// the log, and is taken before machine.writing.
// clusterRow.mu is held over a change of the table of the nodes, with its commit, and tableKeeper.adopting over the
// writes of its cache; clusterRow.mu comes first. folder.mu is held over the writes of node.json.
// ownedRegisterer.mu is taken before the lock of its Registerer.
//
// # Reading order
//
// directory.go is what the rest of the program sees. host.go decides when an engine begins and ends,
// leadership.go is one engine for one term, and machine.go the rows below it. member.go puts a node
// together, and replicas.go is what it knows of a partition with a replica and without one; folder.go, formation.go, replacement.go and port.go are its files, its first start, the place
// of a lost node, and its connections. announcements.go is what the nodes tell each other about their
// partitions, and balance.go which node shall lead which. node_table.go, table_keeper.go and levels.go are the table
// of the nodes and the feature level of the cluster. clock_skew.go compares clocks. inquiry.go, verify.go and views.go are what nodes ask
// each other (workers.go: what workers without a node ask), the comparison of replicas, and the rows of all partitions for a backup. transfer.go and repair.go
// (with replica_rows.go) are what operators change. seed.go, restore.go and recover.go make what a new cluster
// may begin with.
package cluster
