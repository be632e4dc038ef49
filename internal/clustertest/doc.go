// Package clustertest is the harness for tests of a cluster of processes: it starts the real binary
// as several nodes on this machine, disturbs them, records what clients see, and judges it.
//
//	cluster.go   Cluster: the nodes with their network, disks and clean-up
//	node.go      Node: one process; kills, stops, power cuts, a wiped folder
//	boot.go      the boot ID of a node, which a power cut changes
//	members.go   the arguments of a member; command lines of users
//	client.go    Client: calls that are recorded for the history
//	collect.go   what the history needs at the end: records, marks, interruptions
//	plan.go      a plan of random faults from a seed
//	janitor.go   the clean-up that also happens when this process dies
//
// Packages below it:
//
//	network   the network between nodes and clients: namespaces, or proxies without root
//	history   the recorded history and its rules
//
// internal/faults has the disks: Ext4 is one in a file, whose power can be cut.
//
// # What the machine lacks
//
// As root, with /dev/net/tun and loop devices, each node has its own network namespace, its own ext4
// and its own boot ID. Otherwise the network has proxies, and the data folders are plain ones; New logs which. The
// methods for faults of disks then return errors.ErrUnsupported, and a random plan has only faults
// that are possible (Cluster.Capabilities).
//
// A slow disk is made of stalls: the file system is frozen for a part of the time (Node.SlowDisk).
// Latencies of single writes, as dm-delay makes them, are left out, because many machines lack it.
//
// # Clean-up
//
// Everything lies in one temporary folder and, if possible, in network namespaces of the cluster. A
// janitor process knows both and waits for the end of a pipe. It ends the processes, unmounts the
// disks and removes the folder: at the end of the test, and also when the test binary panics, is
// killed or meets its timeout. Names of namespaces, devices and folders are not shared, so tests
// may run in parallel, also those of other test binaries.
//
// # To write a test
//
//	c := clustertest.New(t, clustertest.Options{Binary: …, Arguments: (*clustertest.Node).MemberArguments})
//	c.LaunchAll()
//	… clients call, a plan runs …
//	c.Network.Heal()
//	c.Revive()
//	c.AwaitFinished("n1", limit)
//	c.Check("n1", digests, history.Options{})
//
// Reading order: cluster.go, node.go, members.go, client.go, collect.go, plan.go.
package clustertest
