package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// seedCluster makes, in the folder data, what a cluster begins with: the runs, keys and output of the stopped
// server whose data folder is from. data is empty after an error. Each node gets a copy of it (cluster/seed.go).
//
// Nothing that the nodes could start may run already, so it refuses a folder with a task that has started:
// the worker of that server may outlive it, and its nodes could not ask it. And from is paused before data
// becomes valid: a server on it and the cluster would each start the tasks of the same runs.
func seedCluster(ctx context.Context, from, data string, partitions int, resume bool) (seed *cluster.Seed, err error) {
	look, err := datafolder.Inspect(from)
	if err != nil {
		return nil, err
	}
	problems := look.Problems()
	if look.IsCopy() {
		problems = append(problems, fmt.Errorf("data folder %s: it is a copy: tasks of its runs may run at the original. Start a server on it once, which gives it an identity of its own", look.Path()))
	}
	if err := errors.Join(errors.Join(problems...), look.Close()); err != nil {
		return nil, err
	}
	f, err := datafolder.Open(from, datafolder.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if reason := f.Paused(); reason != "" && !resume {
		return nil, usageErrorf("data folder %s is paused (%s), and a cluster starts its tasks: give --resume if it shall", f.Path(), reason)
	}
	store, err := persistence.OpenStore(persistence.Config{Dir: f.DB()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	out, err := outputs.Open(f.Output())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := checkAtRest(ctx, store); err != nil {
		return nil, fmt.Errorf("data folder %s: %w", f.Path(), err)
	}

	draft, err := datafolder.CreateSeed(data)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Discard())
		} else {
			err = draft.Close()
		}
	}()
	if err := store.Backup(func(view *persistence.ReadView) error {
		seed, err = fillSeed(ctx, draft, f, view, store, out, partitions)
		return err
	}); err != nil {
		return nil, err
	}
	if err := f.SetPaused("its runs were taken into a cluster"); err != nil {
		return nil, err
	}
	return seed, seed.Write(draft.Cluster())
}

// checkAtRest refuses a store in which a task has started and not ended. Tasks without a process are excepted.
func checkAtRest(ctx context.Context, store *persistence.RunStore) error {
	unfinished, err := store.UnfinishedSummaries()
	if err != nil {
		return err
	}
	for _, sum := range unfinished {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if doc, err := store.DefinitionIfPristine(sum.ID); err != nil {
			return err
		} else if doc != nil {
			continue
		}
		stored, err := store.Load(sum.ID)
		if err != nil {
			return err
		}
		run, err := replay.Run(stored, dag.Limits{Executors: []string{"process", "noop", "slurm"}}, &replay.LongPlans{})
		if err != nil {
			return fmt.Errorf("run %d: %w", sum.ID, err)
		}
		running := ""
		run.EachLiveTask(func(task, attempt uint32, _ dag.TaskState) {
			if plan := run.Plan(); plan.Classes[plan.TemplateOf(task).Class].Executor != "noop" {
				running = fmt.Sprintf("run %d: task %q: attempt %d may be running", sum.ID, run.Plan().TaskName(task), attempt)
			}
		})
		if running != "" {
			return fmt.Errorf("%s. Start a server on the folder, `caravan pause --all`, and stop it when no task is RUNNING", running)
		}
	}
	return nil
}

// fillSeed writes rows and output. The tables are verified last, for the reason of writeBackup.
func fillSeed(ctx context.Context, draft *datafolder.Draft, f *datafolder.Folder, view *persistence.ReadView, store *persistence.RunStore, out *outputs.Store, partitions int) (*cluster.Seed, error) {
	next, err := store.NextRun()
	if err != nil {
		return nil, err
	}
	seed := cluster.NewSeed(view, f.ID().String())
	if err := seed.WritePartitions(ctx, draft.Cluster(), view, partitions, next); err != nil {
		return nil, err
	}
	to, err := outputs.Open(draft.Output())
	if err != nil {
		return nil, err
	}
	err = out.ForEachRun(func(run messages.RunID) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if known, err := view.HasRun(run); err != nil || !known { // the rest of a deleted run
			return err
		}
		return out.ReadRun(run, func(size int64, r io.Reader) error {
			seed.OutputFiles++
			seed.OutputBytes += size
			return to.ImportRun(run, size, r)
		})
	})
	if err := errors.Join(err, to.Close()); err != nil {
		return nil, err
	}
	return seed, store.VerifyTables(ctx)
}

// checkSeededOutput compares the output of a node's folder with its seed, when the node is new. Rows are
// compared by the member.
func checkSeededOutput(f *datafolder.Folder, out *outputs.Store) error {
	seed, err := cluster.UnusedSeed(f.Cluster())
	if err != nil || seed == nil {
		return err
	}
	files, bytes := 0, int64(0)
	err = out.ForEachRun(func(run messages.RunID) error {
		return out.ReadRun(run, func(size int64, _ io.Reader) error {
			files++
			bytes += size
			return nil
		})
	})
	if err == nil && (files != seed.OutputFiles || bytes != seed.OutputBytes) {
		err = fmt.Errorf("it has %d files of output with %d bytes, and %d files with %d bytes were written: copy the folder that was made for all nodes once more",
			files, bytes, seed.OutputFiles, seed.OutputBytes)
	}
	if err != nil {
		return fmt.Errorf("data folder %s: %w", f.Path(), err)
	}
	return nil
}

// isUnusedSeed is datafolder.Options.IsSeed.
func isUnusedSeed(dir string) (bool, error) {
	seed, err := cluster.UnusedSeed(dir)
	return seed != nil, err
}
