package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/dag"
	workers "github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// finding is one thing that is wrong in a data folder.
type finding struct {
	Text   string  `json:"text"`
	File   string  `json:"file,omitempty"`
	Offset *int64  `json:"offset,omitempty"`
	Run    *uint64 `json:"run,omitempty"`
}

// checked is what `caravan check` found, as it prints it.
type checked struct {
	Data     string    `json:"data"`
	Whole    bool      `json:"whole"`
	Bytes    int64     `json:"tableBytes"` // of whole tables
	Runs     int       `json:"runs"`       // that are whole
	Damaged  []uint64  `json:"damagedRuns"`
	Findings []finding `json:"findings"`
}

func (c *checked) note(err error, run *uint64) {
	f := finding{Text: err.Error(), Run: run}
	var table *badgerguard.Damage
	var log *commitlog.DamageError
	var output *outputs.DamageError
	var journal *worker.JournalError
	var registry *workers.RegistryError
	var file *fs.PathError
	switch {
	case errors.As(err, &table):
		f.File, f.Offset = table.File, &table.Offset
	case errors.As(err, &log):
		f.File, f.Offset = log.File, &log.Offset
	case errors.As(err, &output):
		f.File, f.Offset = output.File, &output.Offset
	case errors.As(err, &journal):
		f.File = journal.File
	case errors.As(err, &registry):
		f.File = registry.File
	case errors.As(err, &file):
		f.File = file.Path
	}
	if f.Offset != nil && *f.Offset < 0 {
		f.Offset = nil
	}
	c.Findings = append(c.Findings, f)
}

// inspectFolder calls fn with a data folder that no server has open, damaged or not, and what
// can be read of its store. Nothing of it is changed; temporary files go into scratch.
func inspectFolder(ctx context.Context, path, scratch string, fn func(*datafolder.Folder, *persistence.Offline) error) (err error) {
	data, err := datafolder.Inspect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	if err := apart(cmp.Or(scratch, os.TempDir())); err != nil {
		return fmt.Errorf("temporary files: %w", err)
	}
	store, err := persistence.OpenOffline(ctx, data.DB(), scratch)
	if err != nil {
		return fmt.Errorf("data folder %s: %w", data.Path(), err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return fn(data, store)
}

// checkFolder proves a data folder whole, or lists what is not. whole is called for each
// run that is. The folder is not changed.
func checkFolder(ctx context.Context, data *datafolder.Folder, store *persistence.Offline, whole func(messages.RunID, dag.RunState) error) (*checked, error) {
	c := &checked{Data: data.Path(), Bytes: store.TableBytes(), Damaged: []uint64{}, Findings: []finding{}}
	for _, err := range slices.Concat(data.Problems(), store.DamagedFiles, workers.Check(data.Worker())) {
		c.note(err, nil)
	}
	bad := map[messages.RunID]bool{}
	blame := func(id messages.RunID, err error) {
		run := uint64(id)
		c.note(err, &run)
		bad[id] = true
	}
	var failed error
	err := store.ScanRows(func(id messages.RunID, ofRun bool, err error) {
		if ofRun {
			blame(id, err)
		} else {
			c.note(err, nil)
		}
	}, func(id messages.RunID, complete bool) {
		if failed = errors.Join(failed, ctx.Err()); failed != nil {
			return
		}
		failed = c.run(data, store, id, complete, bad, blame, whole)
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	for id := range bad {
		c.Damaged = append(c.Damaged, uint64(id))
	}
	slices.Sort(c.Damaged)
	c.Whole = len(c.Findings) == 0
	return c, nil
}

// run checks one run, and its output.
func (c *checked) run(data *datafolder.Folder, store *persistence.Offline, id messages.RunID, complete bool,
	bad map[messages.RunID]bool, blame func(messages.RunID, error), whole func(messages.RunID, dag.RunState) error) error {
	switch {
	case !complete:
		blame(id, fmt.Errorf("run %d: its summary is missing", id))
	case store.MayHaveLost(id):
		blame(id, fmt.Errorf("run %d: rows of it may lie in what is damaged", id))
	}
	if bad[id] {
		return nil // named already
	}
	var refs []outputs.Ref
	add := func(a *messages.AttemptRecord, stream messages.Stream, out messages.Output) {
		if out.Inline == nil && out.Head+out.Tail > 0 {
			key := messages.AttemptKey{Run: id, Task: a.Task, Attempt: a.Attempt}
			refs = append(refs, outputs.Ref{ID: outputs.ID{Key: key, Stream: stream}, Output: out})
		}
	}
	state, err := actors.CheckRun(store, id, dag.Limits{}, func(a *messages.AttemptRecord) {
		add(a, messages.Stdout, a.Stdout)
		add(a, messages.Stderr, a.Stderr)
	})
	if err != nil {
		blame(id, err)
		return nil
	}
	err = outputs.Verify(data.Output(), id, slices.Values(refs), func(d *outputs.DamageError) { blame(id, d) })
	if err != nil || bad[id] {
		return err
	}
	c.Runs++
	return whole(id, state)
}

func (m *Main) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check DATA",
		Short: "Prove that a data folder is whole, or list what is damaged, file by file and run by run",
		Long: "Check reads everything in the data folder DATA: tables, manifest and commit log with all checksums,\n" +
			"every row, and of every run the definition, the journal, the snapshot, the attempts and the output;\n" +
			"and the journals of workers, unless they are of a former start of the machine.\n" +
			"It changes nothing; no server may have the folder open. The exit code is 0 when all is whole, 1 when\n" +
			"something is damaged.",
		Args: args(1, 1, "one data folder"),
	}
	m.shows(cmd)
	scratch := cmd.Flags().String("scratch", "", "`folder` for temporary files; default: the system's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var c *checked
		err := inspectFolder(cmd.Context(), args[0], *scratch, func(data *datafolder.Folder, store *persistence.Offline) (err error) {
			c, err = checkFolder(cmd.Context(), data, store, func(messages.RunID, dag.RunState) error { return nil })
			return err
		})
		if err != nil {
			return err
		}
		if err := m.showChecked(c); err != nil {
			return err
		}
		if !c.Whole {
			return fmt.Errorf("data folder %s is damaged: %d findings", c.Data, len(c.Findings))
		}
		return nil
	}
	return cmd
}

func (m *Main) showChecked(c *checked) error {
	if m.json {
		return m.printJSON(c)
	}
	for _, f := range c.Findings {
		fmt.Fprintln(m.Stdout, f.Text)
	}
	fmt.Fprintf(m.Stdout, "%d runs are whole, %d are damaged, of %d MB in tables\n", c.Runs, len(c.Damaged), c.Bytes/1e6)
	return nil
}
