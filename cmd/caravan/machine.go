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

// machine is the capacity that tasks and the server share, within the limits of the container. It
// gives the defaults of --cores and --memory-mb, and the pace of the garbage collector.
type machine struct {
	cpus     int64 // whole cores, at least 1
	memoryMB int64 // MiB, at least 1
}

// thisMachine asks the kernel: the cores that this process may be scheduled on (runtime.NumCPU
// follows sched_getaffinity(2)) and MemTotal, lowered by the limits of every control group that the
// process is in. A file that cannot be read does not limit. root is "/" except in tests.
func thisMachine(root string) machine {
	m := machine{cpus: int64(runtime.NumCPU()), memoryMB: totalMemory(root) >> 20}
	for _, dir := range cgroups(root) {
		if quota, period, ok := cpuMax(dir); ok {
			// A fraction of a core counts as a whole one: tasks ask for one core by default.
			m.cpus = min(m.cpus, int64(math.Ceil(quota/period)))
		}
		// The files of cgroup version 2 and 1. Without a limit the former says "max", which is not
		// a number, and the latter has a number near the largest int64.
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

// totalMemory returns MemTotal in bytes, or 1 GiB if it cannot be read. The line of /proc/meminfo is
// "MemTotal:       16318412 kB", in units of 1,024 bytes.
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

// cgroups lists the directories whose limits apply to this process: its control groups and all
// their ancestors, of versions 1 and 2 (cgroups(7)). A directory of the list may be missing. A line
// of /proc/self/cgroup is "hierarchy:controllers:path":
//
//	0::/system.slice/caravan.service        version 2: below /sys/fs/cgroup
//	4:cpu,cpuacct:/system.slice             version 1: below /sys/fs/cgroup/cpu and …/cpuacct
func cgroups(root string) []string {
	text, _ := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	var dirs []string
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		// In a container the path may be the one that the host sees, which does not exist here. The
		// root of the controller is always included.
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

// cpuMax returns the quota and the period of a group, in the same unit (microseconds): quota/period
// is how many cores the group may use. ok is false for a group without a limit: version 2 then has
// "max 100000" in cpu.max, version 1 a quota of -1.
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

// readInt reads a file that holds one decimal number.
func readInt(name string) (int64, bool) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// tuneRuntime adapts Go's runtime to a server. Values of GOMAXPROCS, GOMEMLIMIT and GOGC that the
// user sets take precedence.
//
// It sets GOMAXPROCS to twice the number of cores. The server's threads often block in the kernel,
// mostly in the sync of a commit, and a thread that returns finds a free P at once. With as many Ps
// as cores it would wait after every commit, and the runtime's monitor would wake 50,000 times a
// second to retake Ps from blocked threads. Both together cost a third of the submissions per
// second.
//
// The memory limit is a quarter of the machine's memory, at least 512 MiB, because the rest belongs
// to the tasks. It is a soft one: near it the collector works harder, and beyond it the process
// goes on (runtime/debug.SetMemoryLimit).
//
// It changes the process, so a command calls it once, before it opens a server. The result is the
// heap size in bytes below which the collector stays idle, for newGCTuner; 0 where GOGC is set.
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

// gcTuner adapts the pace of Go's garbage collector to the server. The collector belongs to the
// process, so there is one tuner. Its methods are safe for concurrent use: the runtime's goroutine of
// finalizers, requests with long documents and the recovery of runs call them.
//
// A collection delays every request by some milliseconds, and a small heap has many collections.
// Therefore the heap may grow to a floor before each of them. While a long document is planned the
// opposite holds: the heap grows fast, and the usual share of garbage would exceed the document.
//
//	live heap          16 MiB    64 MiB   192 MiB   1 GiB      with a floor of 192 MiB
//	next collection   192 MiB   192 MiB   480 MiB   2.5 GiB    at 150 percent
//	low pressure       20 MiB    80 MiB   240 MiB   1.25 GiB   at 25 percent
type gcTuner struct {
	floorBytes     int64 // heap size in bytes below which the collector stays idle; 0 = by percent alone
	defaultPercent int   // garbage as a percentage of the live heap; negative: no collections

	mu             sync.Mutex // guards the fields below and is held while the runtime's percentage is set
	liveBytes      int64      // live heap after the last collection, in bytes; 0 = unknown
	holders        int        // callers that hold the pressure low
	currentPercent int        // what the runtime is set to
}

// pressurePercent is the share of garbage, in percent of the live heap, while a caller holds the
// pressure low.
const pressurePercent = 25

// newGCTuner starts from the percentage that the runtime has: that of tuneRuntime, or of GOGC.
// Setting a percentage is the only way to read it, and the second call puts it back. floor is
// Config.HeapFloor. A tuner with a floor follows the collections until the process ends; it has no
// Close.
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

// watchCollections calls onCollection after each collection: the finalizer of an unreachable object
// runs then, and sets itself up again. The runtime offers no other notice of a collection, short of a
// goroutine that polls. The object holds a pointer, because the runtime packs tiny objects without
// pointers together and may never run the finalizer of one (runtime.SetFinalizer).
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

// onCollection records the size of the live heap.
func (c *gcTuner) onCollection(live int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.liveBytes = live
	c.apply()
}

// percent returns the percentage that should apply now, in the notation of GOGC: the heap may grow by
// this share of its live part before the next collection. A user's own lower percentage holds under
// pressure, too. The caller holds c.mu.
func (c *gcTuner) percent() int {
	switch {
	case c.holders > 0 && (c.defaultPercent < 0 || c.defaultPercent > pressurePercent):
		return pressurePercent
	case c.liveBytes > 0 && c.defaultPercent >= 0:
		return max(c.defaultPercent, int(c.floorBytes*100/c.liveBytes)-100)
	}
	return c.defaultPercent
}

// apply sets the runtime's percentage. Setting it stops the world, so changes of less than a tenth
// are skipped, except the one back to the default. The caller holds c.mu.
func (c *gcTuner) apply() {
	if p := c.percent(); p != c.currentPercent && (p < c.currentPercent*9/10 || p > c.currentPercent*11/10 || p == c.defaultPercent) {
		c.currentPercent = p
		debug.SetGCPercent(p)
	}
}

// lowerPressure keeps garbage low until the caller calls end, exactly once. Callers may overlap: the
// pressure rises again when the last one has ended.
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
