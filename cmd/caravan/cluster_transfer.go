package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
)

// errNotTransferred is the error for leaderships that stay. The reasons are printed before.
var errNotTransferred = errors.New("not all leaderships were transferred")

// clusterTransferCommand moves leaderships. It has the exit code 1 unless all have moved.
func (m *Main) clusterTransferCommand() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "transfer {PARTITION NODE | --all-from NODE}",
		Short: "Make another node lead",
		Long: "Transfer makes NODE, given by its name, the leader of PARTITION, and returns when it serves. With --all-from\n" +
			"all partitions that a node leads go to others, for example before work on its machine. Tasks that run go on.\n" +
			"For an hour, or until the nodes restart, balance does not undo it. The exit code is 1 unless all have moved.",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("all-from") {
				return argCount(0, 0, "no arguments with --all-from")(cmd, args)
			}
			return argCount(2, 2, "a partition and a node")(cmd, args)
		},
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	cmd.Flags().StringVar(&from, "all-from", "", "give all leaderships of `NODE` to others")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var partition uint64
		if len(args) > 0 {
			var err error
			if partition, err = parsePartition(args[0]); err != nil {
				return err
			}
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		nodes, err := c.Cluster(cmd.Context())
		if err != nil {
			return err
		}
		all := []client.LeaderTransfer{}
		if len(args) == 0 {
			all, err = c.TransferAllLeaders(cmd.Context(), from)
		} else {
			var one *client.LeaderTransfer
			if one, err = c.TransferLeader(cmd.Context(), partition, args[1]); err == nil && one != nil {
				all = append(all, *one)
			}
		}
		if err != nil {
			return err
		}
		return m.printTransfers(nodes, all)
	}
	return cmd
}

// parsePartition reads an argument that is the number of a partition.
func parsePartition(arg string) (uint64, error) {
	n, err := strconv.ParseUint(arg, 10, 31)
	if err != nil {
		return 0, usageErrorf("invalid partition %q: must be a non-negative integer", arg)
	}
	return n, nil
}

// printTransfers prints a line for each partition:
//
//	partition 0: n2 leads in place of n1
//	partition 3: n1 leads on: no other node is heard
func (m *Main) printTransfers(nodes *client.Cluster, all []client.LeaderTransfer) (err error) {
	for _, t := range all {
		if t.Problem != "" {
			err = errNotTransferred
		}
	}
	if m.jsonOutput {
		return errors.Join(m.printJSON(all), err)
	}
	for _, t := range all {
		from, to := printable(nodes.NameOf(t.From)), printable(nodes.NameOf(t.To))
		if t.Problem != "" {
			fmt.Fprintf(m.Stdout, "partition %d: %s leads on: %s\n", t.Partition, from, printable(t.Problem))
		} else {
			fmt.Fprintf(m.Stdout, "partition %d: %s leads in place of %s\n", t.Partition, to, from)
		}
	}
	return err
}
