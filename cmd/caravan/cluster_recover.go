package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// recoveryReport is the result of `caravan cluster recover`, in the form that -o json prints.
type recoveryReport struct {
	Cluster     string                       `json:"cluster"` // the former one
	Partitions  []cluster.RecoveredPartition `json:"partitions"`
	OutputFiles int                          `json:"outputFiles"`
	OutputBytes int64                        `json:"outputBytes"`
	// OutputFilesLeftOut counts the files of runs of which another folder has a longer one.
	OutputFilesLeftOut int `json:"outputFilesLeftOut"`
}

// clusterRecoverCommand makes a new cluster of what survived of another one. Its report is on standard output,
// because it is the result. After an error the folder is empty, and no folder is marked unless the error says so.
func (m *Main) clusterRecoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover --accept-loss --data FOLDER DATA...",
		Short: "Make a new cluster of the nodes that survived the loss of most",
		Long: "Recover is for a cluster that has lost most of its nodes for good. It reads the data folders DATA of all nodes\n" +
			"that are left, which do not run, and makes FOLDER, which must be empty or not exist, with what they have: of\n" +
			"each partition the replica whose log reaches furthest. It prints what may be lost. Copy FOLDER to each node of\n" +
			"a new cluster before its first start. No node starts with DATA any more. Lost nodes must never come back.",
		Args: cobra.MinimumNArgs(1),
	}
	m.addOutputFlag(cmd)
	var data string
	var accept, resume bool
	cmd.Flags().StringVar(&data, "data", "", "the new `folder`")
	cmd.Flags().BoolVar(&accept, "accept-loss", false, "acknowledged runs and states may be missing in the new cluster")
	cmd.Flags().BoolVar(&resume, "resume", false, "let the cluster start tasks of unfinished runs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case data == "":
			return usageErrorf("--data is required")
		case !accept:
			return usageErrorf("what the lost nodes alone had is lost: give --accept-loss. When the nodes of a majority can be started, start them instead")
		}
		if err := checkOutsideDataFolders(data); err != nil {
			return err
		}
		report, err := recoverCluster(cmd.Context(), args, data, resume)
		if err != nil {
			return err
		}
		if m.jsonOutput {
			return m.printJSON(report)
		}
		m.printRecovery(report, data)
		return nil
	}
	return cmd
}

// recoverCluster makes, in the folder data, what a new cluster begins with, of the data folders of nodes.
func recoverCluster(ctx context.Context, nodes []string, data string, resume bool) (report *recoveryReport, err error) {
	var folders []*datafolder.Folder
	var survivors []cluster.SurvivorFolder
	defer func() {
		for _, f := range folders {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, path := range nodes {
		f, err := datafolder.InspectNode(path)
		if err != nil {
			return nil, err
		}
		folders, survivors = append(folders, f), append(survivors, cluster.SurvivorFolder{Dir: f.Cluster(), IsCopy: f.IsCopy()})
		if err := errors.Join(f.Problems()...); err != nil {
			return nil, err
		}
	}
	recovery, err := cluster.OpenRecovery(survivors, persistence.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, recovery.Close()) }()
	draft, err := datafolder.CreateSeed(data)
	if err != nil {
		return nil, err
	}
	scratch := filepath.Join(draft.Cluster(), "scratch")
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Discard())
		} else {
			err = draft.Close()
		}
	}()
	if err := recovery.Recover(ctx, draft.Cluster(), scratch); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(scratch); err != nil {
		return nil, err
	}
	report = &recoveryReport{Cluster: recovery.Cluster, Partitions: recovery.Partitions}
	for _, p := range recovery.Partitions {
		if p.Unfinished > 0 && !resume {
			return nil, usageErrorf("partition %d has %s that did not end, and the new cluster starts their tasks at once: give --resume when no task of the former cluster runs any more",
				p.Partition, pluralize(p.Unfinished, "run"))
		}
	}
	if err := recoverOutput(ctx, folders, draft, report); err != nil {
		return nil, err
	}
	recovery.Seed.OutputFiles, recovery.Seed.OutputBytes = report.OutputFiles, report.OutputBytes
	if err := recovery.Supersede("its runs were taken into a new cluster, that of " + draft.Path()); err != nil {
		return nil, err
	}
	if err := recovery.Seed.Write(draft.Cluster()); err != nil {
		return nil, errors.Join(err, recovery.Reinstate())
	}
	return report, nil
}

// recoverOutput copies the output that the folders have. Of a run with files in several folders the longest one is
// taken: each has what was written there.
func recoverOutput(ctx context.Context, folders []*datafolder.Folder, draft *datafolder.Draft, report *recoveryReport) (err error) {
	to, err := outputs.Open(draft.Output())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	type file struct {
		in   *outputs.Store
		size int64
	}
	longest := map[messages.RunID]file{}
	for _, f := range folders {
		in, err := outputs.Open(f.Output())
		if err != nil {
			return err
		}
		defer in.Close()
		err = in.ForEachRun(func(run messages.RunID) error {
			return in.ReadRun(run, func(size int64, _ io.Reader) error {
				known, ok := longest[run]
				if ok {
					report.OutputFilesLeftOut++
				}
				if !ok || size > known.size {
					longest[run] = file{in, size}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	for run, f := range longest {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := f.in.ReadRun(run, func(size int64, r io.Reader) error {
			report.OutputFiles++
			report.OutputBytes += size
			return to.ImportRun(run, size, r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// printRecovery prints a report:
//
//	partition 0: 412 runs, 3 of them unfinished, from node n2: entry 1042 of term 7
//	partition 0: entries after 1030 may not have been committed, and are taken all the same
//	partition 0: without n1, n3: what was acknowledged after entry 1042 is lost, and it is unknown how much that is
func (m *Main) printRecovery(r *recoveryReport, data string) {
	for _, p := range r.Partitions {
		fmt.Fprintf(m.Stdout, "partition %d: %s, %d of them unfinished, from node %s: entry %d of term %d\n",
			p.Partition, pluralize(p.Runs, "run"), p.Unfinished, printable(p.Node), p.Index, p.Term)
		if p.Index > p.Committed {
			fmt.Fprintf(m.Stdout, "partition %d: entries after %d may not have been committed, and are taken all the same\n", p.Partition, p.Committed)
		}
		if len(p.Copied) > 0 {
			fmt.Fprintf(m.Stdout, "partition %d: copies of the folders of %s: the originals may have more\n", p.Partition, printable(strings.Join(p.Copied, ", ")))
		}
		switch {
		case p.IsComplete:
			fmt.Fprintf(m.Stdout, "partition %d: most of its voters are here: all that was acknowledged is, if these folders are the newest of their nodes\n", p.Partition)
		case len(p.Missing) > 0:
			fmt.Fprintf(m.Stdout, "partition %d: without %s: what was acknowledged after entry %d is lost, and it is unknown how much that is\n",
				p.Partition, printable(strings.Join(p.Missing, ", ")), p.Index)
		default:
			fmt.Fprintf(m.Stdout, "partition %d: what was acknowledged after entry %d is lost, and it is unknown how much that is\n", p.Partition, p.Index)
		}
	}
	if n := r.OutputFilesLeftOut; n > 0 {
		fmt.Fprintf(m.Stdout, "%s of output left out: another folder has a longer one of the same run\n", pluralize(n, "file"))
	}
	fmt.Fprintf(m.Stderr, "%s: %d files of output with %d bytes. Copy it to each node of the new cluster before the first start\n", printable(data), r.OutputFiles, r.OutputBytes)
}
