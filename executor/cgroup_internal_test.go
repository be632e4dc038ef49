package executor

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// newFakeMachine makes a root folder with a /proc of its own. The mounts that it lists are plain
// folders.
func newFakeMachine(t *testing.T, mountinfo, cgroup string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{"proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const bothVersions = "30 23 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n31 23 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n"

func TestMachinesWithoutCgroups(t *testing.T) {
	for name, c := range map[string]struct{ mounts, own, folder, want string }{
		"nothing is mounted": {"", "0::/\n", "", "not mounted"},
		"ours is not there":  {bothVersions, "0::/x/y\n", "cg/unified", "no such file"},
		"no cgroup.kill":     {bothVersions, "0::/\n", "cg/unified", "cgroup.kill"},
	} {
		root := newFakeMachine(t, c.mounts, c.own)
		if err := os.MkdirAll(filepath.Join(root, c.folder), 0o755); err != nil {
			t.Fatal(err)
		}
		g, err := openCgroupPool(root, "n", true, slog.New(slog.DiscardHandler))
		if g != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
		if left, _ := filepath.Glob(filepath.Join(root, "cg/*/caravan-*")); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	if _, err := openCgroupPool(t.TempDir(), "n", false, nil); err == nil {
		t.Error("a machine without /proc")
	}
	var none *cgroupPool
	if g, err := none.acquire(1); g != nil || err != nil || (*cgroup)(nil).oomMessage() != "" {
		t.Error("a group of none")
	}
	if !none.release(nil) {
		t.Error("without a group nobody knows that no survivor lives")
	}
	none.close()
}

func TestMemoryLimitOfVersion1(t *testing.T) {
	root := newFakeMachine(t, bothVersions, "4:memory:/mine\n0::/\n")
	home := filepath.Join(root, "cg/memory/mine")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	c := newCgroupPool(slog.New(slog.NewTextHandler(&log, nil)))
	c.dir = filepath.Join(root, "cg/unified/none")
	c.limitMemory(filepath.Join(root, "cg/memory"), "/mine", "n")
	if c.memoryDir != "" || !strings.Contains(log.String(), "not enforced") {
		t.Errorf("%q, %q: its folder is no group", c.memoryDir, log.String())
	}
	if err := os.WriteFile(filepath.Join(home, "tasks"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.limitMemory(filepath.Join(root, "cg/memory"), "/mine", "n")
	if c.memoryDir != filepath.Join(home, "caravan-n") || c.v1Home != home {
		t.Errorf("%q, %q", c.memoryDir, c.v1Home)
	}
}

// fakeCgroups is a pool of groups in plain folders. The test says which groups have members, and
// which calls fail. A folder with members cannot be removed.
type fakeCgroups struct {
	*cgroupPool
	t      *testing.T
	log    strings.Builder
	refuse error // of mkdir
}

func newFakeCgroups(t *testing.T) *fakeCgroups {
	f := &fakeCgroups{t: t}
	f.cgroupPool = newCgroupPool(slog.New(slog.NewTextHandler(&f.log, nil)))
	f.dir = filepath.Join(t.TempDir(), "caravan-n")
	f.memoryDir = f.dir
	f.mkdir = func(dir string) error {
		if f.refuse != nil {
			return f.refuse
		}
		if err := os.Mkdir(dir, 0o755); err != nil || dir == f.dir {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "cgroup.events"), []byte("populated 0\nfrozen 0\n"), 0o600)
	}
	f.rmdir = func(dir string) error {
		if text, _ := os.ReadFile(filepath.Join(dir, "cgroup.events")); strings.HasPrefix(string(text), "populated 1") {
			return unix.EBUSY
		}
		return os.RemoveAll(dir)
	}
	return f
}

func (f *fakeCgroups) mustAcquire(limit int64) *cgroup {
	f.t.Helper()
	g, err := f.acquire(limit)
	if g == nil || err != nil {
		f.t.Fatalf("%v, %v", g, err)
	}
	return g
}

func populate(t *testing.T, g *cgroup, members string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir.Name(), "cgroup.events"), []byte("populated "+members+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// groupFolders lists the folders of all groups.
func (f *fakeCgroups) groupFolders() (names []string) {
	entries, _ := os.ReadDir(f.dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A survivor keeps only its own group, and no descriptor.
func TestSurvivorDoesNotKeepOtherCgroups(t *testing.T) {
	f := newFakeCgroups(t)
	defer f.close()
	before := countDescriptors(t)
	first := f.mustAcquire(0)
	populate(t, first, "1")
	if !f.release(first) {
		t.Error("a survivor was not seen")
	}
	for range 150 {
		g := f.mustAcquire(0)
		populate(t, g, "1")
		path := g.dir.Name()
		f.release(g)
		if err := os.WriteFile(filepath.Join(path, "cgroup.events"), []byte("populated 0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := countDescriptors(t); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	eventually(t, func() bool { return len(f.groupFolders()) == 1 }, func() string { return strings.Join(f.groupFolders(), " ") })
	f.slow.Lock()
	left := slices.Clone(f.leftovers)
	f.slow.Unlock()
	if !slices.Equal(left, []string{filepath.Join(f.dir, "0")}) {
		t.Errorf("left: %v", left)
	}
}

// Empty groups without a limit are reused, and a bounded number is kept.
func TestEmptyCgroupsAreReused(t *testing.T) {
	f := newFakeCgroups(t)
	a := f.mustAcquire(0)
	f.release(a)
	if b := f.mustAcquire(0); b != a {
		t.Error("an empty group was not used again")
	} else {
		f.release(b)
	}
	var many []*cgroup
	for range 3 * maxFreeGroups {
		many = append(many, f.mustAcquire(0))
	}
	for _, g := range many {
		f.release(g)
	}
	if n := len(f.groupFolders()); n != maxFreeGroups {
		t.Errorf("%d groups wait", n)
	}
	limited := f.mustAcquire(20 << 20)
	if text, _ := os.ReadFile(filepath.Join(limited.memoryDir, "memory.max")); string(text) != "20971520" {
		t.Errorf("limit %q", text)
	}
	path := limited.dir.Name()
	f.release(limited)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("a group with a limit is kept, and with it what is charged to it")
	}
	if again := f.mustAcquire(20 << 20); again.dir.Name() == path {
		t.Error("it was used again")
	} else {
		f.release(again)
	}
	f.close()
	if _, err := os.Stat(f.dir); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", f.groupFolders())
	}
}

// A failure to make a group concerns one attempt.
func TestFailedCgroupConcernsOneAttempt(t *testing.T) {
	f := newFakeCgroups(t)
	defer f.close()
	f.refuse = unix.EAGAIN // as many descendants as the group may have
	for range 3 {
		if g, err := f.acquire(0); g != nil || err != nil {
			t.Errorf("%v, %v", g, err)
		}
	}
	if n := strings.Count(f.log.String(), "\n"); n != 1 {
		t.Errorf("logged %d times: %s", n, f.log.String())
	}
	_, err := f.acquire(32 << 20)
	var limit *memoryLimitError
	if !errors.As(err, &limit) || !errors.Is(err, unix.EAGAIN) || err.Error() != "the memory limit of 32 MB cannot be set: resource temporarily unavailable" {
		t.Errorf("%v", err)
	}
	f.refuse = nil
	f.release(f.mustAcquire(0))

	// Groups that have become empty make room at once.
	survivor := f.mustAcquire(0)
	populate(t, survivor, "1")
	f.release(survivor)
	populate(t, survivor, "0")
	mkdir, full := f.mkdir, true
	f.mkdir = func(dir string) error {
		if _, err := os.Stat(survivor.dir.Name()); err == nil && full {
			return unix.EAGAIN
		}
		return mkdir(dir)
	}
	held := f.mustAcquire(0) // the free one
	f.release(f.mustAcquire(0))
	f.release(held)
}

// After a refused start groups are suspended for a while, and then tried again.
func TestRefusedStartSuspendsCgroups(t *testing.T) {
	f := newFakeCgroups(t)
	defer f.close()
	before := time.Now()
	f.suspend(errors.New("refused by the kernel"))
	f.suspend(errors.New("refused by the kernel"))
	if f.suspendedUntil.Before(before.Add(suspendFirst)) {
		t.Errorf("for less than %v", suspendFirst)
	}
	f.suspendedUntil = before.Add(time.Hour) // the machine may be busy for longer than suspendFirst
	if g, err := f.acquire(0); g != nil || err != nil || f.suspension != suspendFirst {
		t.Errorf("%v, %v, for %v", g, err, f.suspension)
	}
	if n := strings.Count(f.log.String(), "refused by the kernel"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	f.suspendedUntil = time.Now()
	g := f.mustAcquire(0)
	f.release(g)
	f.suspend(errors.New("again"))
	if f.suspension != 2*suspendFirst {
		t.Errorf("for %v", f.suspension)
	}
	f.suspendedUntil = time.Now()
	g = f.mustAcquire(0)
	g.startAccepted()
	if f.suspension != 0 {
		t.Error("not forgotten")
	}
	f.release(g)
}

// An attempt whose limit cannot be set does not start.
func TestAttemptDoesNotStartWithoutItsLimit(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	f := newFakeCgroups(t)
	p.cgroups = f.cgroupPool
	mkdir := f.mkdir
	f.mkdir = func(dir string) error {
		if err := mkdir(dir); err != nil || dir == f.dir {
			return err
		}
		return os.Mkdir(filepath.Join(dir, "memory.max"), 0o755) // EISDIR stands for EBUSY
	}
	p.slots.memory, p.slots.maxMemory = 100<<20, 100<<20
	p.Start(Order{Key: messages.AttemptKey{Run: 1, Task: 1, Attempt: 1}, Command: []string{"true"}, MemoryBytes: 32 << 20})
	r := <-reports
	if r.Kind != Finished || r.Record.Result != messages.AttemptNotStarted || r.Record.RC != -1 ||
		!strings.HasPrefix(r.Record.ExecutorLog, `start "true": the memory limit of 32 MB cannot be set: open `) {
		t.Errorf("%+v", r)
	}
}

// Limits are shown as they were submitted.
func TestMemoryLimitsAreShownAsSubmitted(t *testing.T) {
	for milli, want := range map[int64]string{1: "0.001", 500: "0.5", 999: "0.999", 1_000: "1", 1_500: "1.5", 32_000: "32", 2_048_500: "2048.5", 1_000_000_000: "1000000"} {
		if got := formatRounded(milli<<20/1000, 1<<20); got != want {
			t.Errorf("%d: %s, want %s", milli, got, want)
		}
	}
	if text := (&memoryLimitError{500 << 20 / 1000, unix.EBUSY}).Error(); text != "the memory limit of 0.5 MB cannot be set: device or resource busy" {
		t.Error(text)
	}
}

// eventually polls for a condition, with a deadline.
func eventually(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	if !testenv.Poll(testenv.Patience, ok) {
		t.Fatal(what())
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Empty groups of a prefix are removed, in both versions and wherever this process would make some.
// Groups that are kept or not empty stay, as do those of other prefixes.
func TestStaleCgroupsAreRemoved(t *testing.T) {
	root := newFakeMachine(t, bothVersions, "0::/a/b\n1:memory:/m\n")
	folders := map[string]bool{ // whether it goes
		"cg/unified/a/b/caravan-id-w-1/0":  true,
		"cg/unified/a/b/caravan-id-w-1/1":  true,
		"cg/unified/a/caravan-id-w-2/7":    true,
		"cg/unified/caravan-id-w-3":        true,
		"cg/memory/m/caravan-id-w-1/0":     true,
		"cg/unified/a/b/caravan-id-w-4/0":  false, // kept
		"cg/unified/a/b/caravan-other-w-1": false,
		"cg/unified/a/b/id-w-1":            false,
		"cg/unified/a/b/caravan-id-w-5/0":  false, // a process lives there
	}
	for name := range folders {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "cg/unified/a/b/caravan-id-w-5/0/process"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removeCgroups(root, "id-", func(rest string) bool { return rest == "w-4" })
	for name, goes := range folders {
		if _, err := os.Stat(filepath.Join(root, name)); (err != nil) != goes {
			t.Errorf("%s: %v", name, err)
		}
	}
}
