package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// differentReplicasError is the error for a comparison that has not found all replicas equal. The result is
// printed before.
type differentReplicasError struct{}

func (differentReplicasError) Error() string { return "not all replicas were found equal" }

// clusterVerifyCommand compares the replicas of a cluster. It has the exit code 1 unless all are equal.
func (m *Main) clusterVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the replicas of a cluster",
		Long: "Verify makes every replica of a partition compute a digest of its rows as of one log entry, and compares\n" +
			"them, partition by partition. The cluster goes on. Each replica reads all its rows, so it takes a while.\n" +
			"The exit code is 1 unless all replicas are equal.",
		Args: argCount(0, 0, "no arguments"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		nodes, err := c.Cluster(cmd.Context())
		if err != nil {
			return err
		}
		found, err := c.VerifyCluster(cmd.Context())
		if err != nil {
			return err
		}
		if m.jsonOutput {
			err = m.printJSON(found)
		} else {
			m.printVerification(nodes, found)
		}
		if err == nil && !found.Equal {
			err = differentReplicasError{}
		}
		return err
	}
	return cmd
}

// printVerification prints a line for each partition, and one for each replica that is not equal to the others:
//
//	partition 0: entry 1042: 3 replicas are equal (5120 rows)
//	partition 1: entry 977: the replica of n1 is right (4812 rows, digest 5f0e2b…)
//	partition 1: entry 977: the replica of n2 differs (4811 rows, digest 91ac40…)
func (m *Main) printVerification(nodes *client.Cluster, v *client.Verification) {
	for i := range v.Partitions {
		p := &v.Partitions[i]
		head := fmt.Sprintf("partition %d: ", p.Partition)
		if p.Index > 0 {
			head += fmt.Sprintf("entry %d: ", p.Index)
		}
		if p.Problem != "" {
			fmt.Fprintf(m.Stdout, "%s%s\n", head, printable(p.Problem))
			continue
		}
		if p.Equal {
			fmt.Fprintf(m.Stdout, "%s%d replicas are equal (%d rows)\n", head, len(p.Replicas), p.Replicas[0].Rows)
			continue
		}
		for _, r := range p.Replicas {
			of := "the replica of " + printable(nodes.NameOf(r.Node))
			switch {
			case r.Problem != "":
				fmt.Fprintf(m.Stdout, "%s%s was not compared: %s\n", head, of, printable(r.Problem))
			case r.Differs:
				fmt.Fprintf(m.Stdout, "%s%s differs (%d rows, digest %.16s)\n", head, of, r.Rows, r.Digest)
			default:
				fmt.Fprintf(m.Stdout, "%s%s is right (%d rows, digest %.16s)\n", head, of, r.Rows, r.Digest)
			}
		}
	}
}

// namesOf returns the names of nodes, or "-".
func namesOf(c *client.Cluster, ids []string) string {
	var names []string
	for _, id := range ids {
		names = append(names, c.NameOf(id))
	}
	return orDash(strings.Join(names, ","))
}
