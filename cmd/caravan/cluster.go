package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// clusterCommand groups the commands about a cluster. Alone it prints its help.
func (m *Main) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Show and change the state of a cluster",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(m.clusterStatusCommand(), m.clusterInitCommand(), m.clusterVerifyCommand(), m.clusterBackupCommand(), m.clusterRestoreCommand(),
		m.clusterRecoverCommand(), m.clusterTransferCommand(), m.clusterRepairCommand(), m.clusterRemoveCommand(), m.clusterUpgradeCommand(),
		m.clusterWorkerCommand())
	return cmd
}

// clusterStatusCommand shows a cluster as one of its nodes sees it. It has the exit code 0 whatever it
// shows: a node that is cut off answers, too.
func (m *Main) clusterStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes of a cluster, and which of them lead",
		Long: "Status shows the cluster as the node at --server sees it: the nodes with what tasks take of their cores\n" +
			"and memory (MB), the tasks that run there and those that wait there; and of each partition of the runs\n" +
			"the leader with its term, the last log entry that this node has applied, and how many committed ones\n" +
			"it has yet to apply.",
		Args: argCount(0, 0, "no arguments"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		found, err := c.Cluster(cmd.Context())
		if err != nil {
			return err
		}
		if m.jsonOutput {
			return m.printJSON(found)
		}
		return m.printCluster(found)
	}
	return cmd
}

// printCluster prints a cluster as two tables:
//
//	cluster 5b0e…, seen by n1
//
//	NODE  ADDRESS          LEADS  CORES  MEMORY    RUNNING  WAITING  CLOCK
//	n1    127.0.0.1:2504   0      2/2    100/1000  2        0        -
//	n2    127.0.0.1:2505   -      0/2    0/1000    0        0        1h0m0s ahead
//
//	PARTITION  LEADER  TERM  APPLIED  LAG  DIFFERS
//	0          n1      3     1042     0    -
func (m *Main) printCluster(c *client.Cluster) error {
	leads := map[string][]string{}
	for _, p := range c.Partitions {
		leads[p.Leader] = append(leads[p.Leader], strconv.FormatUint(p.Partition, 10))
	}
	fmt.Fprintf(m.Stdout, "cluster %s, seen by %s\n\n", printable(c.ID), printable(c.NameOf(c.Node)))
	plain := func(s string) string { return s }
	nodes := newTable(m.Stdout, plain, "NODE", "ADDRESS", "LEADS", "CORES", "MEMORY", "RUNNING", "WAITING", "CLOCK")
	for _, n := range c.Nodes {
		cores, memory := "-", "-" // nothing is known of its slots
		if n.Slots.Cores > 0 {
			cores = strconv.FormatFloat(n.Taken.Cores, 'f', -1, 64) + "/" + strconv.FormatFloat(n.Slots.Cores, 'f', -1, 64)
			if n.Draining {
				cores += " (draining)"
			}
			memory = fmt.Sprintf("%d/%d", n.Taken.MemoryMB, n.Slots.MemoryMB)
		}
		err := nodes.add(c.NameOf(n.ID), orDash(n.Address), orDash(strings.Join(leads[n.ID], ",")), cores, memory,
			strconv.Itoa(n.Running), strconv.Itoa(n.Waiting), clockSkew(n.ClockSkewSeconds))
		if err != nil {
			return err
		}
	}
	if err := nodes.flush(); err != nil {
		return err
	}
	if err := m.printWorkers(c.Workers); err != nil {
		return err
	}
	fmt.Fprintln(m.Stdout)
	partitions := newTable(m.Stdout, plain, "PARTITION", "LEADER", "TERM", "APPLIED", "LAG", "DIFFERS")
	for _, p := range c.Partitions {
		applied, lag := "-", "-" // the node has no replica
		if p.Replica {
			applied, lag = strconv.FormatUint(p.Applied, 10), strconv.FormatUint(p.Lag, 10)
		}
		err := partitions.add(strconv.FormatUint(p.Partition, 10), orDash(c.NameOf(p.Leader)), strconv.FormatUint(p.Term, 10),
			applied, lag, namesOf(c, p.Differing))
		if err != nil {
			return err
		}
	}
	return partitions.flush()
}

// clockSkew describes how far the clock of a node is off, in seconds; "-" if that is less than a millisecond.
func clockSkew(seconds float64) string {
	switch skew := time.Duration(seconds * float64(time.Second)).Round(time.Millisecond); {
	case skew > 0:
		return skew.String() + " ahead"
	case skew < 0:
		return (-skew).String() + " behind"
	}
	return "-"
}

// printWorkers prints the workers without a node, if there are any:
//
//	WORKER                ADDRESS          STATE      CORES  MEMORY    RUNNING  WAITING
//	gpu.1f3a0c66b2d94e07  127.0.0.1:40122  connected  4/8    100/1000  1        0
func (m *Main) printWorkers(all []client.ClusterWorker) error {
	if len(all) == 0 {
		return nil
	}
	fmt.Fprintln(m.Stdout)
	workers := newTable(m.Stdout, func(s string) string { return s }, "WORKER", "ADDRESS", "STATE", "CORES", "MEMORY", "RUNNING", "WAITING")
	for _, w := range all {
		cores, memory := "-", "-" // nothing is known of its slots
		if w.Slots.Cores > 0 {
			cores = strconv.FormatFloat(w.Taken.Cores, 'f', -1, 64) + "/" + strconv.FormatFloat(w.Slots.Cores, 'f', -1, 64)
			memory = fmt.Sprintf("%d/%d", w.Taken.MemoryMB, w.Slots.MemoryMB)
		}
		if err := workers.add(printable(w.ID), orDash(w.Address), w.State, cores, memory, strconv.Itoa(w.Running), strconv.Itoa(w.Waiting)); err != nil {
			return err
		}
	}
	return workers.flush()
}
