package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	workers "github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
)

// check and salvage read a data folder without a server, and never write to it. They look at more
// than a server's start does: every row and every block of output, where a start proves only that
// the files of the store are whole. Both hold the shared lock of the folder (datafolder.Inspect),
// so no server can have it open.

// finding is one defect in a data folder. File, Offset and Run are set where they are known. Text
// is a whole sentence, which names them, too.
type finding struct {
	Text   string  `json:"text"`
	File   string  `json:"file,omitempty"`
	Offset *int64  `json:"offset,omitempty"`
	Run    *uint64 `json:"run,omitempty"`
}

// checkReport is the result of `caravan check`, in the form that -o json prints:
//
//	{"data": "/srv/caravan", "whole": false, "tableBytes": 73400320, "runs": 41, "damagedRuns": [7],
//	 "findings": [{"text": "…", "file": "/srv/caravan/output/0/7.out", "offset": 65584, "run": 7}]}
type checkReport struct {
	Data     string    `json:"data"`        // absolute path
	Whole    bool      `json:"whole"`       // there are no findings
	Bytes    int64     `json:"tableBytes"`  // of intact tables
	Runs     int       `json:"runs"`        // intact runs
	Damaged  []uint64  `json:"damagedRuns"` // ascending; [] rather than null in JSON
	Findings []finding `json:"findings"`    // in the order in which they were found
}

// addFinding adds a defect, of one run or (nil) of the folder. The place comes from the first error
// in the chain of err that knows one: each package below has a type of its own for damage. An
// offset below 0 means that the file as a whole is damaged.
func (c *checkReport) addFinding(err error, run *uint64) {
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

// inspectFolder opens a data folder read-only, damaged or not, and calls fn with it and the
// readable part of its store. It is an error if a server has the folder open. Temporary files go
// into scratch ("" = the system's folder for them), which must lie outside all data folders: they
// hold the content of the commit log and of damaged tables. Both arguments of fn are closed when it
// returns.
func inspectFolder(ctx context.Context, path, scratch string, fn func(*datafolder.Folder, *persistence.Offline) error) (err error) {
	data, err := datafolder.Inspect(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	if err := checkOutsideDataFolders(cmp.Or(scratch, os.TempDir())); err != nil {
		return fmt.Errorf("temporary files: %w", err)
	}
	store, err := persistence.OpenOffline(ctx, data.DB(), scratch)
	if err != nil {
		return fmt.Errorf("data folder %s: %w", data.Path(), err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return fn(data, store)
}

// checkFolder verifies a data folder and lists its defects. It calls whole for each intact run,
// with the run's state, by ascending IDs; an error of whole ends the check. The report is nil after
// an error, which means that the folder could not be read, and not that it is damaged.
//
// A run is damaged by a defect in any of its rows or in its output. Other defects, such as a
// damaged file of a worker, count for the folder and leave its runs intact.
func checkFolder(ctx context.Context, data *datafolder.Folder, store *persistence.Offline, whole func(messages.RunID, dag.RunState) error) (*checkReport, error) {
	c := &checkReport{Data: data.Path(), Bytes: store.TableBytes(), Damaged: []uint64{}, Findings: []finding{}}
	for _, err := range slices.Concat(data.Problems(), store.DamagedFiles, workers.CheckFolder(data.Worker())) {
		c.addFinding(err, nil)
	}
	bad := map[messages.RunID]bool{} // runs with a finding
	blame := func(id messages.RunID, err error) {
		run := uint64(id)
		c.addFinding(err, &run)
		bad[id] = true
	}
	var failed error // what ended the check early; ScanRows itself goes on to the end of the rows
	err := store.ScanRows(func(id messages.RunID, ofRun bool, err error) {
		if ofRun {
			blame(id, err)
		} else {
			c.addFinding(err, nil)
		}
	}, func(id messages.RunID, complete bool) {
		if failed = errors.Join(failed, ctx.Err()); failed != nil {
			return
		}
		failed = c.checkRun(data, store, id, complete, bad, blame, whole)
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

// checkRun verifies one run and its output, after ScanRows has verified each of its rows. complete
// says that the summary was among them. It stops at the first kind of defect, since a damaged
// journal leaves the later checks without what they compare. Its error is one of reading or of
// whole, not of damage.
//
// It replays the run as a start of the server would, and so reads what no checksum can prove: that
// the records fit together. replay.CheckRun yields the attempts on the way, and their output is
// verified after that.
func (c *checkReport) checkRun(data *datafolder.Folder, store *persistence.Offline, id messages.RunID, complete bool,
	bad map[messages.RunID]bool, blame func(messages.RunID, error), whole func(messages.RunID, dag.RunState) error) error {
	switch {
	case !complete:
		blame(id, fmt.Errorf("run %d: the summary is missing", id))
	case store.MayHaveLost(id):
		blame(id, fmt.Errorf("run %d: its rows may lie in a damaged part", id))
	}
	if bad[id] {
		return nil // already reported
	}
	var refs []outputs.Ref // of output that lies in the run's file, not in the record
	add := func(a *messages.AttemptRecord, stream messages.Stream, out messages.Output) {
		if out.Inline == nil && out.Head+out.Tail > 0 {
			key := messages.AttemptKey{Run: id, Task: a.Task, Attempt: a.Attempt}
			refs = append(refs, outputs.Ref{ID: outputs.ID{Key: key, Stream: stream}, Output: out})
		}
	}
	state, err := replay.CheckRun(store, id, dag.Limits{}, func(a *messages.AttemptRecord) {
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

// checkCommand prints the findings on standard output, because they are its result, and with damage
// one more line, on standard error, with the exit code 1. A folder that cannot be read has the same
// code, and standard output then stays empty.
func (m *Main) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check DATA|FILE",
		Short: "Verify a data folder, or a backup, and list the damage by file and run",
		Long: "Check reads everything in the data folder DATA: tables, manifest and commit log with all checksums,\n" +
			"every row, and of every run the definition, the journal, the snapshot, the attempts and the output;\n" +
			"and the journals of workers, unless they are older than the last boot of the machine.\n" +
			"It does not modify the folder, which no server may have open. FILE is a backup, whose checksums and digests\n" +
			"it reads, as restore --verify-only does. The exit code is 0 if all is intact, 1 if something is damaged.",
		Args: argCount(1, 1, "one data folder or backup"),
	}
	m.addOutputFlag(cmd)
	scratch := cmd.Flags().String("scratch", "", "`folder` for temporary files; default: the system's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if info, err := os.Stat(args[0]); err == nil && info.Mode().IsRegular() {
			return m.checkBackup(cmd.Context(), args[0])
		}
		var c *checkReport
		err := inspectFolder(cmd.Context(), args[0], *scratch, func(data *datafolder.Folder, store *persistence.Offline) (err error) {
			c, err = checkFolder(cmd.Context(), data, store, func(messages.RunID, dag.RunState) error { return nil })
			return err
		})
		if err != nil {
			return err
		}
		if err := m.printReport(c); err != nil {
			return err
		}
		if !c.Whole {
			return fmt.Errorf("data folder %s is damaged: %d findings", c.Data, len(c.Findings))
		}
		return nil
	}
	return cmd
}

// checkBackup verifies a backup, of a single server or of a cluster. It does not look into the runs.
func (m *Main) checkBackup(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	sum, err := backup.Read(bufio.NewReaderSize(&contextReader{ctx, file}, 256<<10), withRestoreChecks(backup.Sink{}))
	if err != nil {
		return withName(path, err)
	}
	if m.jsonOutput {
		return m.printJSON(sum)
	}
	_, err = fmt.Fprintln(m.Stdout, backupSummary(path+" is whole", sum))
	return err
}

// printReport prints a report for people or as JSON. A finding takes one line; its text comes from
// the packages that found it, with paths quoted where they need it.
func (m *Main) printReport(c *checkReport) error {
	if m.jsonOutput {
		return m.printJSON(c)
	}
	for _, f := range c.Findings {
		fmt.Fprintln(m.Stdout, f.Text)
	}
	fmt.Fprintf(m.Stdout, "%s whole, %d damaged, of %d MB in tables\n", pluralize(c.Runs, "run"), len(c.Damaged), c.Bytes/1e6)
	return nil
}

// salvageMargin is how many run IDs are skipped when the highest used ID is unknown. A server
// writes its highest ID down every minute, and takes fewer runs than this in a minute: 10 million
// in a minute would be 167,000 in a second. An ID that is used twice would make a client, or a
// repeated submission, take one run for another.
const salvageMargin = 10_000_000

// salvageReport is the result of `caravan salvage`, in the form that -o json prints: the members of
// checkReport, about the old folder, and these.
type salvageReport struct {
	checkReport
	Into    string   `json:"into"`    // absolute path of the new folder
	Kept    int      `json:"kept"`    // runs that were copied
	LeftOut []uint64 `json:"leftOut"` // damaged runs, and runs whose rows may be missing
	NextRun uint64   `json:"nextRun"` // ID of the first new run in the new folder
	// KeptKeys counts the idempotency keys of deleted runs that were copied.
	KeptKeys int `json:"keptKeys"`
}

// salvageCommand exits with 0 when the new folder is valid, also when runs were left out: the
// report says which. After any error the new folder is empty.
func (m *Main) salvageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "salvage DATA INTO",
		Short: "Copy all intact runs of a damaged data folder to a new one",
		Long: "Salvage reads the data folder DATA as check does, and creates the folder INTO with the intact runs, their\n" +
			"output, and the idempotency keys of deleted runs. DATA is not changed. INTO must be empty or not exist.\n" +
			"It has its own identity and starts paused (serve --resume). Runs that are left out are printed with the reason.",
		Args: argCount(2, 2, "a data folder and a new one"),
	}
	m.addOutputFlag(cmd)
	scratch := cmd.Flags().String("scratch", "", "`folder` for temporary files; default: the system's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := salvage(cmd.Context(), args[0], args[1], *scratch)
		if err != nil {
			return err
		}
		if m.jsonOutput {
			return m.printJSON(s)
		}
		if err := m.printReport(&s.checkReport); err != nil {
			return err
		}
		for _, run := range s.LeftOut {
			fmt.Fprintf(m.Stdout, "left out: run %d\n", run)
		}
		fmt.Fprintf(m.Stdout, "%s copied to %s, the next run will have the ID %d\n", pluralize(s.Kept, "run"), s.Into, s.NextRun)
		return nil
	}
	return cmd
}

// salvage copies the intact runs of the data folder from into the new data folder into.
func salvage(ctx context.Context, from, into, scratch string) (s *salvageReport, err error) {
	err = inspectFolder(ctx, from, scratch, func(data *datafolder.Folder, old *persistence.Offline) error {
		s, err = salvageInto(ctx, data, old, into)
		return err
	})
	return s, err
}

// checkOutsideFolder refuses a path inside the data folder data, which has no links in it; those of
// path are resolved. data itself counts as inside. Unlike checkOutsideDataFolders it recognizes a
// folder whatever its content: a damaged one may no longer look like a data folder.
func checkOutsideFolder(data, path string) error {
	real, err := resolveLinks(path)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(data, real); err == nil && filepath.IsLocal(rel) {
		return usageErrorf("%s lies in the data folder %s: choose a path outside it", path, data)
	}
	return nil
}

// resolveLinks returns an absolute path without links. The last elements of path may be missing,
// and are kept as they are: filepath.EvalSymlinks alone would fail for a folder that a command is
// to create.
func resolveLinks(path string) (real string, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	real, err = filepath.EvalSymlinks(path)
	for at := path; errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at); {
		at = filepath.Dir(at)
		if real, err = filepath.EvalSymlinks(at); err == nil {
			rest, _ := filepath.Rel(at, path)
			real = filepath.Join(real, rest)
		}
	}
	return real, err
}

// salvageInto creates the folder into and fills it from old. A failure leaves into empty. The store
// is closed, and so durable, before the draft is finished; until then no server opens the folder.
func salvageInto(ctx context.Context, data *datafolder.Folder, old *persistence.Offline, into string) (s *salvageReport, err error) {
	if err := checkOutsideFolder(data.Path(), into); err != nil {
		return nil, err
	}
	draft, err := datafolder.CreateDraft(into, data.ID())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Discard())
		}
	}()
	store, err := persistence.OpenStore(persistence.Config{Dir: draft.DB()})
	if err != nil {
		return nil, err
	}
	s, err = copyWholeRuns(ctx, data, old, draft, store)
	if err = errors.Join(err, store.Close()); err != nil {
		return nil, err
	}
	if err := draft.Finish("salvaged from " + data.Path() + ": look first, then resume"); err != nil {
		return nil, err
	}
	return s, draft.Close()
}

// copyWholeRuns copies all intact runs and the keys of deleted runs, in one pass with the check: a
// run is copied when it has just proved whole. Output is copied before the rows that refer to it.
func copyWholeRuns(ctx context.Context, data *datafolder.Folder, old *persistence.Offline, draft *datafolder.Draft, store *persistence.RunStore) (*salvageReport, error) {
	s := &salvageReport{Into: draft.Path(), LeftOut: []uint64{}}
	c, err := checkFolder(ctx, data, old, func(id messages.RunID, state dag.RunState) error {
		if old.UnboundedLoss && !state.Final() {
			// Its newest rows may be among the missing ones.
			s.LeftOut = append(s.LeftOut, uint64(id))
			return nil
		}
		s.Kept++
		if err := outputs.CopyRun(data.Output(), draft.Output(), id); err != nil {
			return err
		}
		return old.CopyRun(id, store)
	})
	if err != nil {
		return nil, err
	}
	s.checkReport = *c
	s.LeftOut = append(s.LeftOut, c.Damaged...)
	if s.KeptKeys, err = old.CopyKeys(store); err != nil {
		return nil, err
	}
	next, err := old.NextRun()
	if err != nil {
		return nil, err
	}
	if !c.Whole {
		next += salvageMargin
	}
	s.NextRun = uint64(next)
	return s, store.SetNextRun(next)
}
