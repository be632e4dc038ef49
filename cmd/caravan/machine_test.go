package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestThisMachineHonoursCgroupLimits(t *testing.T) {
	cpus := int64(runtime.NumCPU())
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  machine
	}{
		{"nothing to read", nil, machine{cpus, 1024}},
		{"no limits", map[string]string{
			"proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n", "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n",
		}, machine{cpus, 16000}},
		{"half a core, and a limit above", map[string]string{
			"proc/meminfo": "MemTotal: 16384000 kB\n", "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/cpu.max": "50000 100000\n", "sys/fs/cgroup/a/memory.max": "1073741824\n",
		}, machine{1, 1024}},
		{"version 1", map[string]string{
			"proc/meminfo": "MemTotal: 16384000 kB\n", "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/x\nodd\n",
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2147483648\n",
		}, machine{1, 2048}},
		{"version 1 without limits", map[string]string{
			"proc/meminfo": "MemTotal: x kB\n", "proc/self/cgroup": "4:cpu:/\n3:memory:/\n",
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, machine{cpus, 1024}},
		{"nonsense", map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "lots\n", "sys/fs/cgroup/memory.max": "0\n",
		}, machine{cpus, 1}},
	} {
		root := t.TempDir()
		for name, text := range tc.files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := thisMachine(root); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
	if m := thisMachine("/"); m.cpus < 1 || m.memoryMB < 1 {
		t.Errorf("this machine is %+v", m)
	}
}

func TestTuneRuntime(t *testing.T) {
	limit, procs := debug.SetMemoryLimit(-1), runtime.GOMAXPROCS(0)
	t.Cleanup(func() {
		debug.SetMemoryLimit(limit)
		runtime.GOMAXPROCS(procs)
	})
	debug.SetMemoryLimit(math.MaxInt64)
	tuneRuntime(machine{memoryMB: 16 << 10}, func(string) (string, bool) { return "2", true })
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 || runtime.GOMAXPROCS(0) != procs {
		t.Errorf("it overrode the user's: %d bytes, %d Ps", got, runtime.GOMAXPROCS(0))
	}
	for mb, want := range map[int64]int64{16 << 10: 4 << 30, 100: 512 << 20} {
		runtime.GOMAXPROCS(procs)
		tuneRuntime(machine{memoryMB: mb}, func(string) (string, bool) { return "", false })
		if got := debug.SetMemoryLimit(-1); got != want || runtime.GOMAXPROCS(0) != 2*procs {
			t.Errorf("%d MB: got %d, want %d; %d Ps for %d", mb, got, want, runtime.GOMAXPROCS(0), procs)
		}
	}
}

// percent returns the setting of the runtime's collector.
func percent() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

func TestGCTunerLowersPressureWhileHeld(t *testing.T) {
	for _, before := range []int{150, pressurePercent - 1, -1} {
		own := debug.SetGCPercent(before)
		want := pressurePercent
		if before >= 0 {
			want = min(before, pressurePercent)
		}
		c := newGCTuner(0)
		if got := percent(); got != before {
			t.Errorf("from %d: %d percent at first", before, got)
		}
		first, second := c.lowerPressure(), c.lowerPressure()
		if got := percent(); got != want {
			t.Errorf("from %d: %d percent, want %d", before, got, want)
		}
		first()
		if got := percent(); got != want {
			t.Errorf("from %d, with one user left: %d percent, want %d", before, got, want)
		}
		second()
		if got := percent(); got != before {
			t.Errorf("from %d: %d percent afterwards", before, got)
		}
		debug.SetGCPercent(own)
	}
}

// A small heap grows to the floor, a large one by percent.
func TestGCTunerKeepsTheHeapFloor(t *testing.T) {
	own := debug.SetGCPercent(150)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	c := &gcTuner{floorBytes: 200 << 20, defaultPercent: 150, currentPercent: 150}
	for _, tc := range []struct {
		live int64
		want int
	}{{40 << 20, 400}, {41 << 20, 400}, {50 << 20, 300}, {80 << 20, 150}, {1 << 30, 150}, {40 << 20, 400}} {
		c.onCollection(tc.live)
		if got := percent(); got != tc.want {
			t.Errorf("%d MiB live: %d percent, want %d", tc.live>>20, got, tc.want)
		}
	}
	end := c.lowerPressure()
	if got := percent(); got != pressurePercent {
		t.Errorf("while somebody asks for less: %d percent", got)
	}
	end()
	if got := percent(); got != 400 {
		t.Errorf("afterwards: %d percent", got)
	}
}

// It learns the size of the live heap from the runtime, after each collection.
func TestGCTunerWatchesCollections(t *testing.T) {
	own := debug.SetGCPercent(150)
	t.Cleanup(func() { debug.SetGCPercent(own) })
	c := newGCTuner(1 << 40)
	for percent() == 150 {
		runtime.GC()
	}
	c.mu.Lock()
	c.floorBytes = 0
	c.mu.Unlock()
	for percent() != 150 {
		runtime.GC()
	}
}
