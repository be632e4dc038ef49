package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// writeClusterBackup writes all rows of all partitions, each as of one moment, and the output that this node
// has. Rows are read from the replicas of this node. As writeBackup it holds back the deletion of output, and
// verifies the tables before the trailer is written. ctx ends when the receiver has left.
func writeClusterBackup(ctx context.Context, w io.Writer, f *datafolder.Folder, node string, member *cluster.Member, out *outputs.Store) (sum backup.Summary, err error) {
	defer out.HoldRemovals()()
	views, err := member.OpenViews(ctx)
	if err != nil {
		return sum, err
	}
	defer func() {
		for _, v := range views {
			v.Close()
		}
	}()
	newest := uint64(0)
	for _, v := range views {
		newest = max(newest, v.CommitNumber())
	}
	buffered := bufio.NewWriterSize(w, 256<<10)
	b, err := backup.NewWriter(buffered, backup.Header{
		Folder: f.ID().String(), Format: datafolder.Format, Version: versionInfo().Version, Created: time.Now().UTC(), Moment: newest,
		Cluster: member.Cluster().String(), Node: node, Partitions: member.Partitions(),
	})
	if err != nil {
		return sum, err
	}
	for _, v := range views {
		err := b.Partition(backup.Partition{Number: v.Partition, Moment: v.CommitNumber(), Index: v.Index, Term: v.Term})
		if err == nil {
			err = v.Rows(ctx, b.Row)
		}
		if err != nil {
			return sum, err
		}
	}
	err = out.ForEachRun(func(run messages.RunID) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		known, err := views[uint64(run)%uint64(len(views))].HasRun(run)
		if err != nil || !known { // the run was created later, or deleted
			return err
		}
		return out.ReadRun(run, func(size int64, r io.Reader) error { return b.File(uint64(run), size, r) })
	})
	if err != nil {
		return sum, err
	}
	for _, v := range views {
		if err := v.VerifyTables(ctx); err != nil {
			return sum, err
		}
	}
	if sum, err = b.Close(); err != nil {
		return sum, err
	}
	return sum, buffered.Flush()
}

// clusterBackupCommand writes a backup of a running cluster. It has the exit codes of backupCommand.
func (m *Main) clusterBackupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of a cluster",
		Long: "Backup writes the runs of all partitions, each partition as of one moment, into FILE (- for standard output),\n" +
			"from the replicas of the node at --server, with the output that this node has. The cluster goes on. FILE\n" +
			"appears complete or not at all: the backup is verified before FILE is put in place.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkBackupTarget(args[0]); err != nil {
			return err
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		return m.fetchBackup(cmd.Context(), c, args[0], requireBackupOfCluster)
	}
	return cmd
}

// requireBackupOfCluster refuses a backup of a single server.
func requireBackupOfCluster(h backup.Header) error {
	if h.Partitions == 0 {
		return errors.New("the backup is of a single server: use `caravan backup` and `caravan restore`")
	}
	return nil
}

// requireBackupOfServer refuses a backup of a cluster.
func requireBackupOfServer(h backup.Header) error {
	if h.Partitions > 0 {
		return errors.New("the backup is of a cluster: use `caravan cluster restore`")
	}
	return nil
}
