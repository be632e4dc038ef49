package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// clusterRestoreCommand makes what a new cluster begins with. A backup that is truncated or damaged has the exit
// code 1, one with unfinished runs without --resume 2, and the folder then stays empty or missing.
func (m *Main) clusterRestoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE --data FOLDER",
		Short: "Make a new cluster from a backup of a cluster",
		Long: "Restore makes FOLDER, which must be empty or not exist, from the backup in FILE (- for standard input), with\n" +
			"the runs, idempotency keys and output in it. Copy FOLDER to each node, as its data folder, before the\n" +
			"first start: the nodes form a new cluster with the same number of partitions. It starts the tasks of\n" +
			"unfinished runs at once: --resume confirms that the former cluster does not run any more.",
		Args: argCount(1, 1, "one FILE"),
	}
	var data string
	var resume bool
	cmd.Flags().StringVar(&data, "data", "", "the new `folder`")
	cmd.Flags().BoolVar(&resume, "resume", false, "let the cluster start tasks of unfinished runs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if data == "" {
			return usageErrorf("--data is required")
		}
		if err := checkOutsideDataFolders(data); err != nil {
			return err
		}
		in := m.Stdin
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return &usageError{err}
			}
			defer f.Close()
			in = f
		}
		seed, sum, err := restoreCluster(cmd.Context(), in, args[0], data, resume)
		if err != nil {
			return err
		}
		m.printBackupSummary(data+" restored", sum)
		fmt.Fprintf(m.Stderr, "%s: %d runs in %d partitions, %d idempotency keys, %d files of output with %d bytes. "+
			"Copy it to each node before the first start\n",
			printable(data), seed.Runs(), len(seed.Partitions), seed.Keys(), seed.OutputFiles, seed.OutputBytes)
		return nil
	}
	return cmd
}

// restoreCluster makes, in the folder data, what a new cluster begins with, from the backup that in yields; name
// is what errors call the backup. The seed is written last, after the trailer of the backup is verified and all
// rows and output are durable. data is empty after an error.
func restoreCluster(ctx context.Context, in io.Reader, name, data string, resume bool) (seed *cluster.Seed, sum backup.Summary, err error) {
	var draft *datafolder.Draft // nil until the header of the backup is read
	var restored *cluster.RestoredSeed
	var out *outputs.Store
	defer func() {
		if draft == nil {
			return
		}
		restored.Close()
		if err != nil {
			err = errors.Join(err, draft.Discard())
		} else {
			err = draft.Close()
		}
	}()
	begin := func(h backup.Header) (err error) {
		if err := requireBackupOfCluster(h); err != nil {
			return err
		}
		d, err := datafolder.CreateSeed(data)
		if err != nil {
			return err
		}
		draft = d
		from := fmt.Sprintf("backup of cluster %s as of %s", h.Cluster, h.Created.Format(time.RFC3339Nano))
		restored = cluster.NewRestoredSeed(d.Cluster(), from, h.Moment)
		restored.DropsWorkers = true
		out, err = outputs.Open(d.Output())
		return err
	}
	end := func(p backup.Partition) error {
		unfinished, err := restored.End(p.Digest)
		if err == nil && unfinished > 0 && !resume {
			err = usageErrorf("partition %d has %s that did not end, and the new cluster starts their tasks at once: give --resume when the former cluster does not run any more",
				p.Number, pluralize(unfinished, "run"))
		}
		return err
	}
	sum, err = backup.Read(bufio.NewReaderSize(&contextReader{ctx, in}, 256<<10), withRestoreChecks(backup.Sink{
		Header:       begin,
		Partition:    func(p backup.Partition) error { return restored.Begin(p.Term) },
		Row:          func(key, value []byte) error { restored.Row(key, value); return nil },
		PartitionEnd: end,
		File: func(run uint64, size int64, r io.Reader) error {
			restored.OutputFiles++
			restored.OutputBytes += size
			return out.ImportRun(messages.RunID(run), size, r)
		},
	}))
	err = withName(name, err)
	if out != nil {
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return nil, sum, err
	}
	return restored.Seed, sum, restored.Write(draft.Cluster())
}
