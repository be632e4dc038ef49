package persistence_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// opened keeps the folder of each store that a test has open.
type opened struct {
	*persistence.Badger
	dir string
}

func open(t testing.TB, dir string) persistence.Store {
	t.Helper()
	s, err := persistence.OpenBadger(persistence.Small(persistence.Config{Dir: dir}))
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

// copied is a copy of a folder as a kill -9 at this moment would leave it: the
// kernel's view of its files.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		in, err := os.Open(filepath.Join(dir, name.Name()))
		if os.IsNotExist(err) {
			continue // a compaction has just deleted it
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(to, name.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			t.Fatal(err)
		}
		in.Close()
		out.Close()
	}
	return to
}

func TestBadger(t *testing.T) {
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return open(t, t.TempDir()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.(opened).dir)
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return open(t, copied(t, s.(opened).dir))
		},
		Fail: func(_ testing.TB, s persistence.Store) { s.(opened).FailNext() },
	})
}
