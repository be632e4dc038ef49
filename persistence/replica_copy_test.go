package persistence

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// TestRottenBlockRefusesACopy: the rows of a block that has rotted are missing for an iterator, which
// reports no error. A copy and a digest must not be of what is left. A compaction would drop the damaged table.
func TestRottenBlockRefusesACopy(t *testing.T) {
	t.Parallel()
	_, db, s := leadReplica(t, Config{keepTables: true})
	fillTables(t, db, s)
	if err := s.Backup(func(v *ReadView) error { _, _, err := v.Digest(); return err }); err != nil {
		t.Errorf("a digest of whole tables: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damageTable(t, db, db.badger.Tables()[0])
	db.badger.CacheMaxCost(0, 0) // forget the block
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := v.WriteCopy(context.Background(), &stream); err == nil {
		t.Error("a copy was written")
	}
	if _, rows, err := v.Digest(); err == nil {
		t.Errorf("a digest of %d rows", rows)
	}
	v.Close()
	if _, err := InstallCopy(filepath.Join(t.TempDir(), "replica"), &stream); err == nil {
		t.Error("what was written before the error is installed")
	}
	if err := db.Close(); err == nil {
		t.Error("Close does not report the damage")
	}
}

// damageTable overwrites some bytes in the middle of a table.
func damageTable(t testing.TB, db *DB, table badger.TableInfo) {
	t.Helper()
	f, err := os.OpenFile(badgerguard.Path(db.dir, table.ID), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x55}, 100), int64(table.OnDiskSize)/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// copyOfReplica returns the copy of a replica with some MiB of rows.
func copyOfReplica(t testing.TB) []byte {
	t.Helper()
	_, db, s := leadReplica(t, Config{})
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := s.commitRows(largeRows(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var stream bytes.Buffer
	if err := v.WriteCopy(context.Background(), &stream); err != nil {
		t.Fatal(err)
	}
	return stream.Bytes()
}

// TestCopyIsNotInstalledOnAFullDisk: Badger would meet the full disk as SIGBUS. The disk is full
// from the beginning, or becomes so.
func TestCopyIsNotInstalledOnAFullDisk(t *testing.T) {
	t.Parallel()
	whole := copyOfReplica(t)
	for _, roomy := range []int64{0, 2} { // checks that find room
		parent := t.TempDir()
		var asked atomic.Int64
		statfs := func(string) (free, total int64, err error) {
			if asked.Add(1) <= roomy {
				return 120 << 20, 1 << 30, nil // less than twice what is needed: each check asks
			}
			return 20 << 20, 1 << 30, nil
		}
		_, err := installCopy(filepath.Join(parent, "replica"), bytes.NewReader(whole), vfs.OS{}, statfs)
		if err == nil || !strings.Contains(err.Error(), "disk is nearly full") {
			t.Errorf("%d checks find room: %v", roomy, err)
		}
		if left, _ := os.ReadDir(parent); len(left) != 0 {
			t.Errorf("%v is left", left)
		}
	}
}

// failingNames is a file system whose n-th change of names fails.
type failingNames struct {
	vfs.OS
	left int
}

func (f *failingNames) next() error {
	if f.left--; f.left == 0 {
		return errors.New("injected")
	}
	return nil
}

func (f *failingNames) SyncDir(dir string) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.OS.SyncDir(dir)
}

func (f *failingNames) Rename(from, to string) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

// TestFailedInstallationLeavesNoReplica: whichever step fails, the later ones are not made, and
// neither a replica nor its draft is left.
func TestFailedInstallationLeavesNoReplica(t *testing.T) {
	t.Parallel()
	whole := copyOfReplica(t)
	for n := 1; n <= 4; n++ {
		parent := t.TempDir()
		_, err := installCopy(filepath.Join(parent, "replica"), bytes.NewReader(whole), &failingNames{left: n}, vfs.Statfs)
		left, _ := os.ReadDir(parent)
		switch {
		case n == 4: // there are three steps
			if err != nil || len(left) != 1 {
				t.Errorf("without a failure: %v, %v", err, left)
			}
		case err == nil || len(left) != 0:
			t.Errorf("step %d fails: %v, and %v is left", n, err, left)
		}
	}
	// A folder in use is refused at once.
	parent := t.TempDir()
	dir := filepath.Join(parent, "replica")
	if err := os.MkdirAll(filepath.Join(dir, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	stream := bytes.NewReader(whole)
	if _, err := InstallCopy(dir, stream); err == nil || stream.Len() < len(whole) {
		t.Errorf("installed over a folder that is not empty: %v, %d bytes of %d are unread", err, stream.Len(), len(whole))
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("%v is left", left)
	}
}

// TestCopyIsInstalledInAnEmptyFolder: the folder of the replica may be there already.
func TestCopyIsInstalledInAnEmptyFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "replica")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	at, err := InstallCopy(dir+string(filepath.Separator), bytes.NewReader(copyOfReplica(t)))
	if err != nil {
		t.Fatal(err)
	}
	db := openReplica(t, Config{Dir: dir, Synced: at})
	if synced, err := db.Sync(); err != nil || synced != at {
		t.Errorf("a replica of moment %d is synced up to %d, %v", at, synced, err)
	}
}
