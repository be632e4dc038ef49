package procfs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestParseStat(t *testing.T) {
	line := func(name, state, group, threads string) string {
		return fmt.Sprintf("42 (%s) %s 1 %s 44 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %s 0 99 0", name, state, group, threads)
	}
	for stat, dead := range map[string]bool{
		line("sh", "S", "43", "1"):          false,
		line("a) (b", "S", "43", "1"):       false,
		line("a) R 1 2 (b", "R", "43", "1"): false,
		line("sh", "T", "43", "1"):          false,
		line("sh", "Z", "43", "1"):          true,
		line("sh", "Z", "43", "3"):          false, // only its first thread has ended
		line("sh", "X", "43", "1"):          true,
	} {
		p, ok := parseStat([]byte(stat))
		want := Process{Identity: Identity{PID: 42, Ticks: 99}, Group: 43, Session: 44, Threads: p.Threads, Dead: dead}
		if !ok || p != want || p.Threads != 1 && p.Threads != 3 {
			t.Errorf("%q: %+v %v", stat, p, ok)
		}
	}
	good := line("sh", "S", "43", "1")
	for _, bad := range []string{"", "42 (sh", "42 (sh) S 1", "42 (a) S 1 2", line("sh", "S", "x", "1"), strings.Replace(good, "42", "x", 1)} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	if _, err := Read(1 << 30); err == nil {
		t.Error("a process that does not exist was read")
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) ) Z 1 2"))
	f.Fuzz(func(t *testing.T, line []byte) { parseStat(line) })
}

func TestListFindsThisProcess(t *testing.T) {
	if list, err := List(t.TempDir()); err != nil || list != nil {
		t.Errorf("an empty folder has %v, %v", list, err)
	}
	if _, err := List("/no/such"); err == nil {
		t.Error("a missing folder was listed")
	}
	list, err := List("/proc")
	i := slices.IndexFunc(list, func(p Process) bool { return p.PID == os.Getpid() })
	if err != nil || i < 0 || list[i].Group != syscall.Getpgrp() || !list[i].IsAlive() {
		t.Errorf("this process is not among %v, %v", list, err)
	}
	if (Identity{}).IsAlive() || (Identity{PID: list[i].PID, Ticks: list[i].Ticks + 1}).IsAlive() {
		t.Error("another identity lives")
	}
}
