package main

import (
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
)

// machine is what tasks and the server have to share, limits of the container
// included.
type machine struct {
	cpus     int64 // whole cores, at least 1
	memoryMB int64 // at least 1
}

// thisMachine asks the kernel. root is "/" but in tests.
func thisMachine(root string) machine {
	m := machine{cpus: int64(runtime.NumCPU()), memoryMB: totalMemory(root) >> 20}
	for _, dir := range cgroups(root) {
		if quota, period, ok := cpuMax(dir); ok {
			// A part of a core counts as one: tasks ask for one by default.
			m.cpus = min(m.cpus, int64(math.Ceil(quota/period)))
		}
		for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
			if limit, ok := readInt(path.Join(dir, name)); ok {
				m.memoryMB = min(m.memoryMB, limit>>20)
			}
		}
	}
	m.cpus, m.memoryMB = max(m.cpus, 1), max(m.memoryMB, 1)
	return m
}

func (m machine) coresText() string  { return strconv.FormatInt(m.cpus, 10) }
func (m machine) memoryText() string { return strconv.FormatInt(m.memoryMB, 10) }

// totalMemory is MemTotal in bytes; 1 GiB where it cannot be read.
func totalMemory(root string) int64 {
	text, _ := os.ReadFile(path.Join(root, "proc/meminfo"))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "MemTotal:" {
			if kb, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return kb << 10
			}
		}
	}
	return 1 << 30
}

// cgroups lists the folders whose limits hold for this process: its own control
// groups and all above them, version 2 and 1.
func cgroups(root string) []string {
	text, _ := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	var dirs []string
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		// Below the root of a controller; in a container the path may be seen from
		// outside and not exist here: the root itself is always looked at.
		for _, controller := range strings.Split(f[1], ",") {
			top := path.Join(root, "sys/fs/cgroup", controller)
			for p := path.Clean("/" + f[2]); ; p = path.Dir(p) {
				dirs = append(dirs, path.Join(top, p))
				if p == "/" {
					break
				}
			}
		}
	}
	return dirs
}

// cpuMax reads a group's quota and period, in the same unit.
func cpuMax(dir string) (quota, period float64, ok bool) {
	if text, err := os.ReadFile(path.Join(dir, "cpu.max")); err == nil {
		f := strings.Fields(string(text))
		if len(f) != 2 {
			return 0, 0, false
		}
		quota, err1 := strconv.ParseFloat(f[0], 64)
		period, err2 := strconv.ParseFloat(f[1], 64)
		return quota, period, err1 == nil && err2 == nil && quota > 0 && period > 0
	}
	q, ok1 := readInt(path.Join(dir, "cpu.cfs_quota_us"))
	p, ok2 := readInt(path.Join(dir, "cpu.cfs_period_us"))
	return float64(q), float64(p), ok1 && ok2 && q > 0 && p > 0
}

func readInt(name string) (int64, bool) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// tuneRuntime fits Go's runtime to a server. GOMAXPROCS, GOMEMLIMIT and GOGC, where
// they are set, prevail.
//
// It runs on twice as many Ps as there are cores: its threads hang in the kernel, most
// of all in the commit's sync, and one that comes back finds a P at once. On as many as
// cores it waits for the others, with every commit, and the runtime's monitor wakes
// 50,000 times a second to take Ps from those that hang: together a third of the
// submissions per second.
//
// The collector works harder before the server takes a quarter of the machine from its
// tasks; never less than 512 MiB. The result is the size from which it works at all, in
// bytes, for newCollector; 0 where the user decides.
func tuneRuntime(m machine, lookup func(string) (string, bool)) (heapFloor int64) {
	set := func(name string) bool {
		v, ok := lookup(name)
		return ok && v != ""
	}
	if !set("GOMAXPROCS") {
		runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0))
	}
	if !set("GOGC") {
		debug.SetGCPercent(150)
		heapFloor = min(192<<20, m.memoryMB<<20/16)
	}
	if !set("GOMEMLIMIT") {
		debug.SetMemoryLimit(max(m.memoryMB<<20/4, 512<<20))
	}
	return heapFloor
}

// gcTuner fits the pace of Go's garbage collector to the server. It belongs to the process,
// so there is one.
//
// A collection takes every request some milliseconds longer, and with a small heap there are
// many of them: so the heap may grow to a floor before the first one, and each one after it.
// While a long document is planned it is the other way round: the heap grows fast then, and
// what garbage takes at other times would be more than the document.
type gcTuner struct {
	floorBytes     int64 // the size from which garbage is collected, in bytes; 0 = by percent alone
	defaultPercent int   // percent of what lives that garbage may take; negative: never collected

	mu             sync.Mutex
	liveBytes      int64 // what lived at the last collection, in bytes; 0 = not known
	holders        int   // of spare
	currentPercent int   // percent
}

// pressurePercent is what garbage may take while somebody asks for it, in percent.
const pressurePercent = 25

// newGCTuner goes out from the percent that is set.
func newGCTuner(floor int64) *gcTuner {
	c := &gcTuner{floorBytes: floor, defaultPercent: debug.SetGCPercent(100)}
	c.currentPercent = 100
	c.mu.Lock()
	c.apply()
	c.mu.Unlock()
	if floor > 0 {
		c.watchCollections()
	}
	return c
}

// watchCollections has the collector look at what lives after each collection.
func (c *gcTuner) watchCollections() {
	type mark struct{ _ *byte }
	var collected func(*mark)
	collected = func(m *mark) {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		c.onCollection(int64(sample[0].Value.Uint64()))
		runtime.SetFinalizer(m, collected)
	}
	runtime.SetFinalizer(new(mark), collected)
}

// onCollection notes what lives.
func (c *gcTuner) onCollection(live int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.liveBytes = live
	c.apply()
}

// percent is what garbage may take now. c.mu is held.
func (c *gcTuner) percent() int {
	switch {
	case c.holders > 0 && (c.defaultPercent < 0 || c.defaultPercent > pressurePercent):
		return pressurePercent
	case c.liveBytes > 0 && c.defaultPercent >= 0:
		return max(c.defaultPercent, int(c.floorBytes*100/c.liveBytes)-100)
	}
	return c.defaultPercent
}

// apply tells the runtime, which stops everything for that: so small changes are passed over.
// c.mu is held.
func (c *gcTuner) apply() {
	if p := c.percent(); p != c.currentPercent && (p < c.currentPercent*9/10 || p > c.currentPercent*11/10 || p == c.defaultPercent) {
		c.currentPercent = p
		debug.SetGCPercent(p)
	}
}

// lowerPressure asks for less garbage, until end is called.
func (c *gcTuner) lowerPressure() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holders++
	c.apply()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.holders--
		c.apply()
	}
}
