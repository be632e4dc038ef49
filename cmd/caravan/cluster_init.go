package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/messages"
)

// clusterInitCommand makes a new cluster of a single server. Its summary is on standard error.
func (m *Main) clusterInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init --from DATA --data FOLDER",
		Short: "Make a new cluster of the runs of a single server",
		Long: "Init reads the data folder DATA of a stopped server and makes FOLDER, which must be empty or not exist,\n" +
			"with its runs, idempotency keys and output. Copy FOLDER to each node, as its data folder, before the first\n" +
			"start: the nodes form a cluster that begins with these runs, under the same IDs. DATA stays as it is,\n" +
			"and is paused.",
		Args: argCount(0, 0, "no arguments"),
	}
	var from, data string
	var partitions int
	var resume bool
	cmd.Flags().StringVar(&from, "from", "", "the data `folder` of the stopped server")
	cmd.Flags().StringVar(&data, "data", "", "the new `folder`")
	cmd.Flags().IntVar(&partitions, "partitions", cluster.DefaultPartitions, "parts of the runs, each led by one node; fixed from here on")
	cmd.Flags().BoolVar(&resume, "resume", false, "let the cluster start tasks, though DATA is paused")
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if from == "" || data == "" {
			return usageErrorf("--from and --data are required")
		}
		if partitions < 1 || partitions > messages.MaxPartitions {
			return usageErrorf("--partitions: %d: must be 1 to %d", partitions, messages.MaxPartitions)
		}
		if err := checkOutsideDataFolders(data); err != nil {
			return err
		}
		seed, err := seedCluster(cmd.Context(), from, data, partitions, resume)
		if err != nil {
			return err
		}
		fmt.Fprintf(m.Stderr, "%s: %d runs in %d partitions, %d idempotency keys, %d files of output with %d bytes. "+
			"Copy it to each node before the first start\n",
			printable(data), seed.Runs(), partitions, seed.Keys(), seed.OutputFiles, seed.OutputBytes)
		return nil
	}
	return cmd
}
