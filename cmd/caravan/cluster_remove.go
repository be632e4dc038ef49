package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// clusterRemoveCommand takes a node out of a cluster.
func (m *Main) clusterRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node that does not run any more out of a cluster",
		Long: "Remove takes NODE, given by its name, out of all partitions. It must be stopped or lost, for as long as tasks\n" +
			"of it may go on without it: a quarter longer than the lease. Each partition must keep at least three replicas\n" +
			"that have nearly all of the log. If NODE starts again, it ends and says why.",
		Args: argCount(1, 1, "a node"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		id, err := c.RemoveNode(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if m.jsonOutput {
			return m.printJSON(map[string]string{"removed": id})
		}
		fmt.Fprintf(m.Stdout, "%s was removed\n", printable(id))
		return nil
	}
	return cmd
}
