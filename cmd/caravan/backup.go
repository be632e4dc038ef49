package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// writeBackup writes all rows and all output as of one moment. It holds back the deletion of
// output, so that every file that a row refers to still exists when it is copied. The store goes
// on: the rows are those of its newest commit when writeBackup begins, and the files may have more
// at their end than those rows refer to, which a restore keeps and no read ever shows. GET
// /v1/backup and `caravan backup --data` both use it.
//
// Tables are verified after the rows are written and before the trailer is. The order matters: Badger
// takes a damaged block for the end of its rows, so a backup may lack rows without an error; then the
// trailer, without which a backup counts as incomplete, is never written.
func writeBackup(ctx context.Context, w io.Writer, f *datafolder.Folder, store *persistence.RunStore, out *outputs.Store) (sum backup.Summary, err error) {
	defer out.HoldRemovals()()
	buffered := bufio.NewWriterSize(w, 256<<10)
	err = store.Backup(func(m *persistence.ReadView) error {
		b, err := backup.NewWriter(buffered, backup.Header{
			Folder: f.ID().String(), Format: datafolder.Format, Version: versionInfo().Version, Created: time.Now().UTC(), Moment: m.CommitNumber(),
		})
		if err != nil {
			return err
		}
		if err := m.Rows(ctx, b.Row); err != nil {
			return err
		}
		err = out.ForEachRun(func(run messages.RunID) error {
			known, err := m.HasRun(run)
			if err != nil || !known { // the run was created later, or deleted
				return err
			}
			return out.ReadRun(run, func(size int64, r io.Reader) error { return b.File(uint64(run), size, r) })
		})
		if err != nil {
			return err
		}
		if err := store.VerifyTables(ctx); err != nil {
			return err
		}
		sum, err = b.Close()
		return err
	})
	return sum, errors.Join(err, buffered.Flush())
}

// backupCommand writes a backup of a running server (over REST, with the scope control) or of the
// folder of a stopped one. With "-" standard output has the backup alone; the summary is on
// standard error in both cases. A failure has the exit code 1 (or 7, 9 of the server's answer) and
// leaves FILE as it was.
func (m *Main) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of a server's data folder",
		Long: "Backup writes all runs and their output, as of one moment, into FILE (- for standard output), from a\n" +
			"running server, which goes on, or with --data from the folder of a stopped one. FILE appears\n" +
			"complete or not at all: the backup is verified before FILE is put in place.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(cmd)
	var data string
	cmd.Flags().StringVar(&data, "data", "", "the data `folder` of a stopped server")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if err := checkBackupTarget(args[0]); err != nil {
			return err
		}
		if data != "" {
			if cmd.Flags().Changed("server") {
				return usageErrorf("--data is for a stopped server and cannot be combined with --server")
			}
			return m.saveBackup(args[0], nil, func(w io.Writer) error { return backupStoppedFolder(ctx, data, w) })
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		return m.fetchBackup(ctx, c, args[0], nil)
	}
	return cmd
}

// fetchBackup saves a backup of a server as the file path. check may refuse it by its header.
func (m *Main) fetchBackup(ctx context.Context, c *client.Client, path string, check func(backup.Header) error) error {
	return m.saveBackup(path, check, func(w io.Writer) error {
		body, err := c.Backup(ctx)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(w, body)
		return err
	})
}

// checkOutsideDataFolders refuses a path inside any data folder. A data folder belongs to one
// server, and other files in it would be taken for damage.
func checkOutsideDataFolders(path string) error {
	data, err := datafolder.FindEnclosing(path)
	if err != nil {
		return &usageError{err}
	}
	if data != "" {
		return usageErrorf("%s lies in the data folder %s: choose a path outside it", path, data)
	}
	return nil
}

// checkBackupTarget refuses paths that a backup must not replace: devices, pipes and anything in a
// data folder. The final rename would put a regular file in the place of /dev/null or of a pipe. It
// runs before the server is asked, so that a mistake does not cost the time of a backup.
func checkBackupTarget(path string) error {
	if path == "-" {
		return nil
	}
	if _, err := os.Stat(path); err == nil {
		f, err := vfs.OpenUserFile(path)
		if errors.Is(err, vfs.ErrNotRegular) {
			return &usageError{err}
		}
		if err == nil {
			_ = f.Close()
		}
	}
	return checkOutsideDataFolders(path)
}

// backupStoppedFolder writes a backup of the data folder of a stopped server. It opens the folder
// and its store as a server does, so a running one is an error, and so the last commits are applied
// to the tables. Inspect comes first, because Open would create a missing folder and adopt a copy.
func backupStoppedFolder(ctx context.Context, data string, w io.Writer) (err error) {
	look, err := datafolder.Inspect(data)
	if err != nil {
		return err
	}
	problems := errors.Join(look.Problems()...)
	if err := errors.Join(problems, look.Close()); err != nil {
		return err
	}
	f, err := datafolder.Open(data, datafolder.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	store, err := persistence.OpenStore(persistence.Config{Dir: f.DB()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	out, err := outputs.Open(f.Output())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = writeBackup(ctx, w, f, store, out)
	return err
}

// saveBackup calls write and puts its output in place as the file path, once it is verified and
// synced. check may refuse it by its header. For "-" it goes to standard output, where a reader learns of a failure by the exit code
// and by the missing trailer. The temporary file lies in the folder of path, because rename(2) does
// not cross file systems; it has the mode 0600, since a backup holds what tasks have printed.
func (m *Main) saveBackup(path string, check func(backup.Header) error, write func(io.Writer) error) error {
	if path == "-" {
		sum, err := verifyWhileWriting(m.Stdout, check, write)
		if err == nil {
			m.printBackupSummary("backup", sum)
		}
		return err
	}
	temporary, err := vfs.CreateTempFile(filepath.Dir(path), ".caravan-backup-")
	if err != nil {
		return &usageError{err}
	}
	sum, err := verifyWhileWriting(temporary, check, write)
	if err == nil {
		err = temporary.Sync()
	}
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err = errors.Join(err, temporary.Close()); err != nil { // closed last: see vfs.CreateTempFile
		_ = os.Remove(temporary.Name()) // it may have been renamed
		return err
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return err
	}
	m.printBackupSummary("backup "+path, sum)
	return nil
}

// syncFolder makes the names in a folder durable: a rename survives a power failure only then.
func syncFolder(dir string) error {
	d, err := vfs.OpenFolder(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// printBackupSummary prints what a backup holds, on standard error.
func (m *Main) printBackupSummary(what string, s backup.Summary) {
	fmt.Fprintln(m.Stderr, backupSummary(what, s))
}

// backupSummary describes what a backup holds:
//
//	backup b: 1204 rows, 3 files of 73400320 bytes, of data folder 5f…e1 as of 2026-11-30T08:00:00Z
//	backup b: 1204 rows in 3 partitions, 3 files of 73400320 bytes, of cluster 91…0c by node n1 as of …
func backupSummary(what string, s backup.Summary) string {
	in, of := "", "data folder "+s.Header.Folder
	if n := s.Header.Partitions; n > 0 {
		in, of = " in "+pluralize(n, "partition"), fmt.Sprintf("cluster %s by node %s", s.Header.Cluster, s.Header.Node)
	}
	return fmt.Sprintf("%s: %d rows%s, %d files of %d bytes, of %s as of %s",
		printable(what), s.Rows, in, s.Files, s.Bytes, printable(of), s.Header.Created.Format(time.RFC3339))
}

// verifyWhileWriting passes the output of write on to w and verifies it as a backup at the same
// time, so that it is read once. A goroutine reads the other end of a pipe, and
// write waits for it, so neither runs ahead. The error is that of the verification when it ended the
// pipe, since write then sees only a closed pipe, and otherwise that of write.
func verifyWhileWriting(w io.Writer, check func(backup.Header) error, write func(io.Writer) error) (sum backup.Summary, err error) {
	r, pipe := io.Pipe()
	done := make(chan error, 1)
	go func() {
		var err error
		sum, err = backup.Read(r, withRestoreChecks(backup.Sink{Header: check}))
		r.CloseWithError(err) // with nil, a write after the end of the backup still fails
		done <- err
	}()
	err = write(io.MultiWriter(w, pipe))
	pipe.CloseWithError(err)
	if verr := <-done; err == nil || errors.Is(err, io.ErrClosedPipe) {
		err = verr
	}
	return sum, err
}

// restoreCommand prints a summary on standard error. A backup that is truncated or damaged has the
// exit code 1, and DATA stays empty or missing.
func (m *Main) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE DATA",
		Short: "Create a data folder from a backup",
		Long: "Restore creates the data folder DATA, which must be empty or not exist, from the backup in FILE (- for\n" +
			"standard input). The folder becomes valid once all of FILE is verified. A server on it starts no task\n" +
			"until `caravan resume --all`, unless --resume is given. With --verify-only it only reads and verifies\n" +
			"FILE.",
	}
	var resume, only bool
	cmd.Flags().BoolVar(&resume, "resume", false, "let a server on the folder start tasks at once")
	cmd.Flags().BoolVar(&only, "verify-only", false, "only verify FILE")
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if only {
			return argCount(1, 1, "one FILE with --verify-only")(cmd, given)
		}
		return argCount(2, 2, "a FILE and the folder DATA")(cmd, given)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !only {
			// This comes before the backup is read. datafolder.CreateDraft refuses DATA itself when
			// it is a data folder.
			if err := checkOutsideDataFolders(args[1]); err != nil && !datafolder.IsDataFolder(args[1]) {
				return err
			}
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
		in = bufio.NewReaderSize(&contextReader{cmd.Context(), in}, 256<<10)
		if only {
			sum, err := backup.Read(in, withRestoreChecks(backup.Sink{}))
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			m.printBackupSummary(args[0]+" is whole", sum)
			return nil
		}
		sum, err := restore(in, args[0], args[1], resume, outputs.Open)
		if err == nil {
			m.printBackupSummary(args[1]+" restored", sum)
		}
		return err
	}
	return cmd
}

// withRestoreChecks wraps a sink with the checks that make a backup restorable: the format and the
// ID of the data folder, the form of each row, and one file at most for each run. Package backup
// proves that the stream is what a writer wrote; these checks prove that this program understands
// it. They hold for a new backup, too: better an error at once than one years later. It remembers
// each run with a file.
func withRestoreChecks(to backup.Sink) backup.Sink {
	row, files := 0, map[uint64]bool{}
	return backup.Sink{
		Partition: to.Partition, PartitionEnd: to.PartitionEnd,
		Header: func(h backup.Header) error {
			if h.Format != datafolder.Format {
				return fmt.Errorf("the data folder has format %d; this program reads format %d", h.Format, datafolder.Format)
			}
			if _, err := datafolder.ParseID(h.Folder); err != nil || to.Header == nil {
				return err
			}
			return to.Header(h)
		},
		Row: func(key, value []byte) error {
			row++
			if err := persistence.CheckRow(key, value); err != nil {
				return fmt.Errorf("row %d: %w", row, err)
			}
			if to.Row == nil {
				return nil
			}
			return to.Row(key, value)
		},
		File: func(run uint64, size int64, r io.Reader) error {
			if files[run] {
				return fmt.Errorf("output of run %d is contained twice", run)
			}
			files[run] = true
			if to.File == nil {
				return nil
			}
			return to.File(run, size, r)
		},
	}
}

// contextReader is a reader that fails once its context ends, with the cause of that end. A read
// that has begun is not interrupted.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (u *contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(u.ctx); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// restore creates the data folder data from the backup that in yields; name is what errors call the
// backup. One goroutine reads the backup and writes output files; another one, in
// persistence.Restore, writes rows. Rows pass between the two through a channel, so that reading,
// unpacking and the sync of a commit overlap. The folder is valid only when Draft.Finish has
// returned, which happens last: after the trailer of the backup is verified and both writers have
// ended without an error. Any failure before that leaves data empty.
//
// openOutputs is outputs.Open, except in tests.
func restore(in io.Reader, name, data string, resume bool, openOutputs func(dir string) (*outputs.Store, error)) (sum backup.Summary, err error) {
	var d *datafolder.Draft // nil until the header of the backup is read
	var origin datafolder.ID
	defer func() {
		switch {
		case d == nil:
		case err != nil:
			err = errors.Join(err, d.Discard())
		default:
			err = d.Close()
		}
	}()
	var out *outputs.Store
	// Both ends of rows are in this function. The goroutine takes all rows, also after an error of
	// the store, so that the reader of the backup never blocks; stored then has that error.
	rows := make(chan [2][]byte, 1024) // key and value
	stored := make(chan error, 1)
	begin := func(h backup.Header) (err error) {
		if err := requireBackupOfServer(h); err != nil {
			return err
		}
		if origin, err = datafolder.ParseID(h.Folder); err != nil {
			return err
		}
		if d, err = datafolder.CreateDraft(data, origin); err != nil {
			return err
		}
		if out, err = openOutputs(d.Output()); err != nil {
			return err
		}
		go func() {
			stored <- persistence.Restore(persistence.Config{Dir: d.DB()}, func(yield func(key, value []byte) error) error {
				for row := range rows {
					if err := yield(row[0], row[1]); err != nil {
						for range rows { // drained, so that the reader does not block
						}
						return err
					}
				}
				return nil
			})
			for range rows { // Restore may have failed before it took any
			}
		}()
		return nil
	}
	sum, err = backup.Read(in, withRestoreChecks(backup.Sink{
		Header: begin,
		Row: func(key, value []byte) error {
			// Copied: backup.Read reuses its buffer for the next chunk.
			rows <- [2][]byte{append([]byte(nil), key...), append([]byte(nil), value...)}
			return nil
		},
		File: func(run uint64, size int64, r io.Reader) error { return out.ImportRun(messages.RunID(run), size, r) },
	}))
	if out == nil {
		return sum, withName(name, err) // begin has not started the goroutine that writes the rows
	}
	close(rows)
	err = errors.Join(withName(name, err), <-stored, out.Close())
	if err != nil {
		return sum, err
	}
	reason := "" // of the pause; "" = a server starts tasks at once
	if !resume {
		reason = fmt.Sprintf("restored from a backup of data folder %s", origin)
	}
	return sum, d.Finish(reason)
}

// withName adds the name of a backup to an error about it.
func withName(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
