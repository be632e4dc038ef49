package testenv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Workers lists the running worker processes of a data folder, by their arguments: worker --data
// DATA. data may be relative, and must not lead through links, because a server resolves them. It
// leaves out children of a worker between fork and exec, which look like workers.
func Workers(data string) (pids []int) {
	if abs, err := filepath.Abs(data); err == nil {
		data = abs
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	parents := map[int]int{}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has exited
		}
		args := bytes.Split(text, []byte{0})
		if len(args) > 3 && string(args[1]) == "worker" && string(args[2]) == "--data" && string(args[3]) == data {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if parent := parentPID(pid); err == nil && parent != 0 { // else it has exited since
				pids, parents[pid] = append(pids, pid), parent
			}
		}
	}
	found := slices.Clone(pids)
	return slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(found, parents[pid]) })
}

// parentPID returns the parent of a running process, or 0.
func parentPID(pid int) int {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // state, parent, …
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}

// EndWorkers ends the workers of a data folder with their tasks: by SIGTERM, and after limit by
// SIGKILL. It returns when they have exited, or with an error when one survives SIGKILL for Patience: a killed
// process stays until the disk has answered its last call. Call it when a test has killed its server, before the
// data folder is removed: a worker outlives its server by design.
func EndWorkers(data string, limit time.Duration) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	told, killedAt := map[int]bool{}, map[int]time.Time{}
	begin := time.Now()
	for {
		pids := Workers(data)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			at, isKilled := killedAt[pid]
			switch {
			case isKilled && time.Since(at) > Patience:
				return fmt.Errorf("worker %d survives SIGKILL", pid)
			case isKilled:
			case time.Since(begin) > limit:
				_ = syscall.Kill(pid, syscall.SIGKILL)
				killedAt[pid] = time.Now()
			case !told[pid]:
				told[pid] = true
				_ = syscall.Kill(pid, syscall.SIGTERM)
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
		<-tick.C
	}
}
