package persistence_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// This file holds a store in the middle of a commit for the conformance suite
// (journaltest.CrashPoint). The commit log lies on a file system of the test's, which lets one call
// wait, and with it every later call that changes a file.

// commitMoment reports whether a call is one at which a commit can be held. A commit makes three
// calls that change files; these are the moments before each of them. TestPowerFailure of package
// commitlog cuts the power before each other operation of the log.
type commitMoment func(g *logGate, c faults.Call) bool

func beforeWrite(g *logGate, c faults.Call) bool {
	return c.Op == faults.Write && g.isSegment(c.Path)
}

func beforeSync(g *logGate, c faults.Call) bool { return c.Op == faults.Sync && g.isSegment(c.Path) }

func beforeWitness(_ *logGate, c faults.Call) bool {
	const witnessOffset = 8192 // of the state file, in bytes
	return c.Op == faults.Write && filepath.Base(c.Path) == "state" && c.Off >= witnessOffset
}

// leftover makes a copy of a store's folder as a crash leaves it.
type leftover func(t testing.TB, s *holdableStore) (dir string)

// killed is the folder of a killed process: what the kernel has of each file. Files are copied one
// after the other, so both orders are made: a log that went on in between would be without the
// records that its state knows, or with more. One of the copies is opened, the log of the other one
// is verified.
func killed(t testing.TB, s *holdableStore) string {
	early := t.TempDir()
	copyState(t, early, s.dir)
	stateFirst := copyFolder(t, s.dir)
	copyState(t, stateFirst, early)
	logFirst := copyFolder(t, s.dir)
	copyState(t, logFirst, s.dir)
	opened, verified := stateFirst, logFirst
	if s.rng.IntN(2) == 0 {
		opened, verified = logFirst, stateFirst
	}
	if _, err := commitlog.Verify(vfs.OS{}, filepath.Join(verified, "log")); err != nil {
		t.Errorf("the other copy: %v", err)
	}
	return opened
}

// A power failure leaves what was synced, and perhaps some sectors of what was not.

func powerFailed(t testing.TB, s *holdableStore) string {
	dir := filepath.Join(t.TempDir(), "left")
	cutPower(t, s.disk, s.dir, dir, nil)
	return dir
}

func powerFailedTorn(t testing.TB, s *holdableStore) string {
	dir := filepath.Join(t.TempDir(), "left")
	cutPower(t, s.disk, s.dir, dir, s.rng)
	return dir
}

// crashPoints are the crash points of a Badger: moments of a commit, and what a crash leaves then.
func crashPoints(open func(persistence.Config) (*persistence.RunStore, error)) (points []journaltest.CrashPoint) {
	for i, p := range []struct {
		name   string
		moment commitMoment
		leave  leftover
	}{
		{"killed before the write", beforeWrite, killed},
		{"power lost before the write", beforeWrite, powerFailed},
		{"killed before the sync", beforeSync, killed},
		{"power lost before the sync, torn", beforeSync, powerFailedTorn},
		{"killed before the witness", beforeWitness, killed},
		{"power lost before the witness", beforeWitness, powerFailed},
	} {
		points = append(points, journaltest.CrashPoint{Name: p.name, Open: func(t testing.TB) journaltest.HoldableStore {
			s := &holdableStore{open: open, dir: t.TempDir(), leave: p.leave, rng: rand.New(rand.NewPCG(7, uint64(i)))}
			s.gate = logGate{isMoment: p.moment, segments: map[string]bool{}}
			s.RunStore, s.disk = openOnDisk(t, open, s.dir, s.gate.pass)
			return s
		}})
	}
	return points
}

// openOnDisk opens a store whose commit log lies on a model of a disk, which also spares the syncs.
// pass, if not nil, is called before each call of the log.
func openOnDisk(t testing.TB, open func(persistence.Config) (*persistence.RunStore, error), dir string, pass func(faults.Call)) (*persistence.RunStore, *faults.Disk) {
	t.Helper()
	disk, err := faults.NewDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := faults.New(disk)
	if pass != nil {
		f.Add(faults.Rule{Do: pass})
	}
	s, err := open(persistence.WithFS(persistence.WithTinyMemtables(persistence.Config{Dir: dir}), f))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, disk
}

// copyState copies the state file of the commit log.
func copyState(t testing.TB, to, from string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(to, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join("log", "state")
	if err := copyFile(filepath.Join(to, state), filepath.Join(from, state)); err != nil {
		t.Fatal(err)
	}
}

// holdableStore is a store whose commit log can be held.
type holdableStore struct {
	*persistence.RunStore
	open  func(persistence.Config) (*persistence.RunStore, error)
	dir   string
	disk  *faults.Disk
	gate  logGate
	leave leftover
	rng   *rand.Rand // of leave
}

func (s *holdableStore) HoldCommit(n int) <-chan struct{} { return s.gate.hold(n) }

func (s *holdableStore) ReleaseCommits() { s.gate.release() }

func (s *holdableStore) OpenCrashed(t testing.TB) persistence.Store {
	after, _ := openOnDisk(t, s.open, s.leave(t, s), nil)
	return after
}

// logGate lets the calls of a commit log through, until hold has it stop one.
type logGate struct {
	isMoment commitMoment

	mu       sync.Mutex
	segments map[string]bool // segments, by the names under which they were opened
	left     int             // calls at the moment until the log is held; 0 = it is not to be held
	held     chan struct{}   // closed when a call waits
	released chan struct{}   // closed by release; nil while no call waits
}

// hold makes the n-th call at the moment from now wait, and then all that change files.
func (g *logGate) hold(n int) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left, g.held = n, make(chan struct{})
	return g.held
}

func (g *logGate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = 0
	if g.released != nil {
		close(g.released)
		g.released = nil
	}
}

// pass is called before each call goes on.
func (g *logGate) pass(c faults.Call) {
	switch c.Op {
	case faults.Write, faults.Sync, faults.SyncDir, faults.Create, faults.Rename, faults.Remove, faults.Truncate:
	default:
		return
	}
	g.mu.Lock()
	if c.Op == faults.Rename && strings.HasSuffix(c.To, ".log") {
		g.segments[c.Path] = true
	}
	if g.left > 0 && g.isMoment(g, c) {
		if g.left--; g.left == 0 {
			g.released = make(chan struct{})
			close(g.held)
		}
	}
	released := g.released
	g.mu.Unlock()
	if released != nil {
		<-released
	}
}

// isSegment reports whether a file is a segment that records are written to. A file that is being
// made is not: it gets its name, by which g knows it, when it is whole. Its calls go on under the
// name that it was opened with.
func (g *logGate) isSegment(path string) bool {
	return strings.HasSuffix(path, ".log") || g.segments[path]
}
