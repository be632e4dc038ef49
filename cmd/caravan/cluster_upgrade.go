package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// clusterUpgradeCommand raises the feature level of a cluster.
func (m *Main) clusterUpgradeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Let a cluster use what the newest version of all nodes can do",
		Long: "Upgrade raises the feature level of a cluster to the highest one that all nodes support, after all of them\n" +
			"run a newer version. Before that a node can go back to its former version, and after it not. It is refused\n" +
			"with the names of the nodes that are not heard or too old.",
		Args: argCount(0, 0, "no arguments"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		from, level, err := c.UpgradeCluster(cmd.Context())
		switch {
		case err != nil:
			return err
		case m.jsonOutput:
			return m.printJSON(map[string]int{"from": from, "level": level})
		case from == level:
			fmt.Fprintf(m.Stdout, "the feature level is %d already\n", level)
		default:
			fmt.Fprintf(m.Stdout, "the feature level is %d, it was %d\n", level, from)
		}
		return nil
	}
	return cmd
}
