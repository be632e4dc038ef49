package persistence_test

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// opened keeps the folder of each store that a test has open.
type opened struct {
	*persistence.RunStore
	dir string
}

func open(t testing.TB, dir string) persistence.Store {
	t.Helper()
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return opened{s, dir}
}

// copyFolder is a copy of a folder as a kill -9 at this moment would leave it: the
// kernel's view of its files. A copy is not made in one moment, so it is made again
// when Badger has changed the set of files meanwhile.
func copyFolder(t testing.TB, dir string) string {
	t.Helper()
	for range 100 {
		to := t.TempDir()
		before := fileSizes(t, dir)
		if err := os.Mkdir(filepath.Join(to, "log"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range slices.Sorted(maps.Keys(before)) {
			if err := copyFile(filepath.Join(to, name), filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		if maps.Equal(before, fileSizes(t, dir)) {
			return to
		}
	}
	t.Fatalf("%s does not come to rest", dir)
	return ""
}

// fileSizes is the files of a folder, and of the commit log in it, and their sizes; the
// manifest only grows.
func fileSizes(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	for _, folder := range []string{"", "log"} {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && !e.IsDir() {
				files[filepath.Join(folder, e.Name())] = info.Size()
			}
		}
	}
	return files
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// withoutSyncs is the file system without its syncs, for suites that kill stores: only a power failure
// loses what is not synced. TestStoreConforms does without it.
type withoutSyncs struct{ vfs.OS }

func (d withoutSyncs) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := d.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

func (withoutSyncs) SyncDir(string) error { return nil }

type unsyncedFile struct{ vfs.File }

func (unsyncedFile) Sync() error { return nil }

func (unsyncedFile) WriteOut(_, _ int64) error { return nil }

func TestStoreConforms(t *testing.T) {
	t.Parallel()
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return open(t, t.TempDir()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.(opened).dir)
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return open(t, copyFolder(t, s.(opened).dir))
		},
		Fail:        func(_ testing.TB, s persistence.Store) { s.(opened).FailNext() },
		CrashPoints: crashPoints(persistence.OpenStore),
	})
}

// TestSecondStoreConforms: a store over a DB that has had another one before. Reopen leaves the DB
// open. A commit does not know of the store before, so it is crashed at two moments here, and at all of
// them in TestStoreConforms. The runs are those of the first partition (TestStoreOfAPartitionConforms).
func TestSecondStoreConforms(t *testing.T) {
	t.Parallel()
	firstPartition := partitionOfSix(0)
	openOfPartition := openerOf(firstPartition, persistence.OpenSecondStore)
	openSecond := func(t testing.TB, dir string) persistence.Store {
		t.Helper()
		s, err := openOfPartition(persistence.WithSmallMemtables(persistence.Config{Dir: dir, FS: withoutSyncs{}}))
		if err != nil {
			t.Fatal(err)
		}
		return numberedStore{closedAtEnd(t, s, dir), firstPartition}
	}
	opened := func(s persistence.Store) opened { return s.(numberedStore).Store.(opened) }
	points := crashPoints(openOfPartition)[3:5] // a power failure and a kill
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return openSecond(t, t.TempDir()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			t.Helper()
			next, err := persistence.NextStore(opened(s).RunStore)
			if err != nil {
				t.Fatal(err)
			}
			return numberedStore{closedAtEnd(t, next, opened(s).dir), firstPartition}
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return openSecond(t, copyFolder(t, opened(s).dir))
		},
		Fail:        func(_ testing.TB, s persistence.Store) { opened(s).FailNext() },
		CrashPoints: numberedCrashPoints(firstPartition, points),
	})
}

func closedAtEnd(t testing.TB, s *persistence.RunStore, dir string) persistence.Store {
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return opened{s, dir}
}

// TestReplicatedStoreConforms: a store over one of two replicas of a log. Each reopening and each
// crash has another replica lead.
func TestReplicatedStoreConforms(t *testing.T) {
	t.Parallel()
	replicated := func(s persistence.Store) *persistence.ReplicatedStore { return s.(replicatedStore).ReplicatedStore }
	point := func(name string, hold func(*persistence.ReplicatedStore) *persistence.ReplicatedStore) journaltest.CrashPoint {
		return journaltest.CrashPoint{Name: name, Open: func(t testing.TB) journaltest.HoldableStore {
			return replicatedStore{hold(persistence.OpenReplicated(t))}
		}}
	}
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return replicatedStore{persistence.OpenReplicated(t)} },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			return replicatedStore{replicated(s).Next(t)}
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return replicatedStore{replicated(s).Crash(t)}
		},
		Fail: func(_ testing.TB, s persistence.Store) { replicated(s).FailNext() },
		CrashPoints: []journaltest.CrashPoint{
			point("before the log has the group", func(s *persistence.ReplicatedStore) *persistence.ReplicatedStore { return s }),
			point("before the leader applies the group", (*persistence.ReplicatedStore).HoldAfterAppend),
		},
	})
}

// replicatedStore opens what a crash leaves as the suite wants it.
type replicatedStore struct{ *persistence.ReplicatedStore }

func (s replicatedStore) OpenCrashed(t testing.TB) persistence.Store {
	return replicatedStore{s.ReplicatedStore.OpenCrashed(t)}
}
