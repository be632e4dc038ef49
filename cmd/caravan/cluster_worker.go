package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// clusterWorkerCommand groups the commands about workers without a node. Alone it prints its help.
func (m *Main) clusterWorkerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Say what became of a worker without a node",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(m.clusterWorkerDeadCommand())
	return cmd
}

// clusterWorkerDeadCommand says that a worker is dead.
func (m *Main) clusterWorkerDeadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead ID",
		Short: "Say that a worker without a node will not come back",
		Long: "Dead says that the machine of the worker ID is lost, or that its tasks have ended: they are lost at once, and run\n" +
			"again elsewhere, without a wait for the end of the lease. If the worker still runs, its tasks run twice until their\n" +
			"lease is over. `caravan cluster status` lists the IDs.",
		Args: argCount(1, 1, "the ID of a worker"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := r.newClient()
		if err != nil {
			return err
		}
		if err := c.DeclareWorkerDead(cmd.Context(), args[0]); err != nil {
			return err
		}
		if m.jsonOutput {
			return m.printJSON(map[string]string{"dead": args[0]})
		}
		fmt.Fprintf(m.Stdout, "%s is dead, and its tasks are lost\n", printable(args[0]))
		return nil
	}
	return cmd
}
