package persistence_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// offline reads a closed store without changing it.
func offline(t *testing.T, dir string) *persistence.Offline {
	t.Helper()
	o, err := persistence.OpenOffline(t.Context(), dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// findings are all damages that an offline store knows.
func findings(t *testing.T, o *persistence.Offline) string {
	t.Helper()
	all := append([]error(nil), o.DamagedFiles...)
	err := o.ScanRows(func(_ messages.RunID, _ bool, err error) { all = append(all, err) }, func(messages.RunID, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(errors.Join(all...))
}

// TestOfflineAppliesStagedBatches: a batch that was committed in parts, and not carried
// out, is read as the next start would read it; one that lacks a part is damage; one that
// was not committed is nothing.
func TestOfflineAppliesStagedBatches(t *testing.T) {
	for name, c := range map[string]struct {
		marked bool
		spoil  func(*persistence.RunStore) error
		want   string // of the findings
		shards uint64
	}{
		"not committed": {false, nil, "<nil>", 16},
		"committed":     {true, nil, "<nil>", 99},
		"a part is missing": {true, func(s *persistence.RunStore) error {
			return persistence.DeleteRow(s, []byte("x\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01"))
		}, "staged batch 1: stored value is corrupt:", 16},
		"all parts are missing": {true, func(s *persistence.RunStore) error {
			for _, k := range persistence.AllKeys(s) {
				if k[0] == 'x' {
					if err := persistence.DeleteRow(s, k); err != nil {
						return err
					}
				}
			}
			return nil
		}, "staged batch 1: stored value is corrupt: all ", 16},
		"a part is changed": {true, func(s *persistence.RunStore) error {
			return persistence.SetRawRow(s, []byte("x\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01"), []byte("rotten"))
		}, "wrong checksum", 16},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := badgerAt(t, dir)
			journaltest.MustAppend(t, s, journaltest.NewRun(1, "", "spec"))
			if err := persistence.StageWithoutApplying(s, c.marked); err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				if err := c.spoil(s); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			o := offline(t, dir)
			if got := findings(t, o); !strings.Contains(got, c.want) {
				t.Errorf("found: %s", got)
			}
			if o.UnboundedLoss != (c.spoil != nil) {
				t.Errorf("rows that nobody can name are missing: %v", o.UnboundedLoss)
			}
			if got, err := persistence.Meta(o, "shards"); err != nil || got != c.shards {
				t.Errorf("%d shards, want %d: %v", got, c.shards, err)
			}
			if st, err := o.Load(1); err != nil || string(st.Definition) != "spec" {
				t.Errorf("run 1: %v", err)
			}
		})
	}
}

// TestSalvageKeepsKeysAndClock: idempotency keys of deleted runs, the time until which they
// stay, and the mark of the server's clock are in the new store.
func TestSalvageKeepsKeysAndClock(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	const runs = 40
	var ids []messages.RunID
	for run := range messages.RunID(runs) {
		b := journaltest.NewRun(run, "", "spec")
		b.Create.IdempotencyKey = fmt.Sprint("key", run)
		b.Summary.State = dag.RunCompleted
		journaltest.MustAppend(t, s, b)
		ids = append(ids, run)
	}
	for i, run := range ids[:runs-1] { // the last one stays
		if err := s.Delete([]messages.RunID{run}, int64(1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	mark := persistence.ClockMark{Steady: 500, Wall: 700, Boot: 900, BootID: "boot", Owed: true}
	if err := s.SetClockMark(mark); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	o, into := offline(t, dir), badgerAt(t, t.TempDir())
	if err := o.CopyRun(runs-1, into); err != nil {
		t.Fatal(err)
	}
	if n, err := o.CopyKeys(into); n != runs-1 || err != nil {
		t.Fatalf("%d keys: %v", n, err)
	}
	if n := into.KeptKeyCount(); n != runs-1 {
		t.Errorf("%d keys are counted", n)
	}
	if got, ok, err := into.ClockMark(); !ok || err != nil || got != mark {
		t.Errorf("the mark: %+v, %v", got, err)
	}
	for _, run := range ids {
		if got, _, ok, err := into.LookUpKey(fmt.Sprint("key", run)); !ok || got != run || err != nil {
			t.Errorf("key %d: run %d, %v, %v", run, got, ok, err)
		}
	}
	if n, err := into.ExpireKeys(1009, 1_000_000, 1000); n != 10 || err != nil {
		t.Errorf("%d keys expired: %v", n, err)
	}
	if _, _, ok, err := into.LookUpKey("key9"); ok || err != nil {
		t.Errorf("an expired key is there: %v", err)
	}
	if _, _, ok, err := into.LookUpKey("key10"); !ok || err != nil {
		t.Errorf("a key that stays is gone: %v", err)
	}
}

// TestOfflineReportsUnreadableFiles: a file that cannot be opened is a finding that names it; what
// the other files hold is read, and nothing is left in the scratch folder.
func TestOfflineReportsUnreadableFiles(t *testing.T) {
	t.Parallel()
	whole := t.TempDir()
	makeTables(t, whole, 3)
	for kind, spoil := range map[string]func(path string) error{
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"loop":   func(path string) error { return os.Symlink(path, path) },
		"no right": func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("x"), 0), os.Chmod(path, 0))
		},
	} {
		if kind == "no right" && os.Geteuid() == 0 {
			continue // root reads it all the same
		}
		for _, name := range readFiles(t, whole) {
			t.Run(kind+" "+name, func(t *testing.T) {
				dir, scratch := t.TempDir(), t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				if err := errors.Join(os.Remove(path), spoil(path)); err != nil {
					t.Fatal(err)
				}
				o, err := persistence.OpenOffline(t.Context(), dir, scratch)
				if err != nil {
					t.Fatal(err)
				}
				if text := findings(t, o); !strings.Contains(text, path) {
					t.Errorf("the findings do not name %s: %s", path, text)
				}
				runs := 0
				err = o.ScanRows(func(messages.RunID, bool, error) {}, func(_ messages.RunID, complete bool) {
					if complete {
						runs++
					}
				})
				if err != nil || runs < 2 {
					t.Errorf("%d runs are left: %v", runs, err)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
				if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
}

// readFiles are the files of a store that hold something, by their paths in it.
func readFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(name) != "LOCK" {
			names = append(names, name)
		}
		return err
	})
	if err != nil || len(names) < 6 {
		t.Fatalf("%v: %v", names, err)
	}
	return names
}
