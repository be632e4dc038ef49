package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// clusterRepairCommand replaces the rows of a replica. It has the exit code 1 unless all replicas are equal
// afterwards.
func (m *Main) clusterRepairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair PARTITION NODE",
		Short: "Replace a replica that differs by a copy of another one",
		Long: "Repair replaces the rows of the replica of PARTITION on NODE, given by its name, by those of the leader. The\n" +
			"cluster and the node go on. The replicas are compared before and after: without a leader that agrees with\n" +
			"most of them the repair is refused. The exit code is 1 unless all are equal afterwards.",
		Args: argCount(2, 2, "a partition and a node"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		partition, err := parsePartition(args[0])
		if err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		nodes, err := c.Cluster(cmd.Context())
		if err != nil {
			return err
		}
		found, err := c.RepairReplica(cmd.Context(), partition, args[1])
		if err != nil {
			return err
		}
		if m.jsonOutput {
			err = m.printJSON(found)
		} else {
			fmt.Fprintf(m.Stdout, "partition %d: the replica of %s has the rows of %s\n", partition, printable(nodes.NameOf(found.Node)), printable(nodes.NameOf(found.Source)))
			m.printVerification(nodes, &client.Verification{Partitions: []client.PartitionVerification{found.Verification}})
		}
		if err == nil && !found.Verification.Equal {
			err = differentReplicasError{}
		}
		return err
	}
	return cmd
}
