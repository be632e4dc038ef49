package executor

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"
)

// groups tells which process groups have living members, zombies aside: kill(2)
// with signal 0 cannot tell, since it counts zombies, and the leader is kept as
// one. One look at /proc answers everybody who asked before it began, so that a
// kill of 1,000 attempts costs a few looks.
type processGroups struct {
	mu           sync.Mutex
	scannedAt    time.Time // when the last look began
	living       map[int]bool
	procReadable bool // /proc could be read
}

// alive tells whether a process of the group lives. Without /proc it goes by signal 0.
func (g *processGroups) hasLiving(pgid int) bool {
	asked := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.scannedAt.After(asked) {
		g.scannedAt = time.Now()
		g.living, g.procReadable = liveGroups("/proc")
	}
	if !g.procReadable {
		return groupExists(pgid)
	}
	return g.living[pgid]
}

// liveGroups lists the groups of all living processes under dir.
func liveGroups(dir string) (map[int]bool, bool) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, false
	}
	live := map[int]bool{}
	seen := false
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		stat, err := os.ReadFile(dir + "/" + name + "/stat")
		if err != nil {
			continue // it has ended meanwhile
		}
		seen = true
		if pgid, ok := livingGroup(stat); ok {
			live[pgid] = true
		}
	}
	return live, seen
}

// livingGroup returns the process group in a line of /proc/PID/stat, and whether
// the process lives: a zombie with further threads is a living process whose first
// thread has ended.
func livingGroup(stat []byte) (pgid int, ok bool) {
	// pid (name) state ppid pgrp …; the name may hold anything, brackets too.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, false
	}
	f := bytes.Fields(stat[i+1:])
	if len(f) < 18 {
		return 0, false
	}
	pgid, err := strconv.Atoi(string(f[2]))
	if err != nil {
		return 0, false
	}
	switch f[0][0] {
	case 'X', 'x':
		return pgid, false
	case 'Z':
		threads, err := strconv.Atoi(string(f[17]))
		return pgid, err == nil && threads > 1
	}
	return pgid, true
}
