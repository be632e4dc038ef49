package main

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// Other processes are reaped on the way, and the exit code is the child's.
func TestReapUntilTheChildExits(t *testing.T) {
	for script, want := range map[string]int{"exit 7": 7, "kill -TERM $$": 143, "exit 0": 0} {
		other := exec.Command("/bin/sh", "-c", "exit 3")
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		child, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "while kill -0 $0 2>/dev/null; do sleep 0.01; done; " + script, strconv.Itoa(other.Process.Pid)},
			&syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			t.Fatal(err)
		}
		if got := reapUntil(child); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
		if err := other.Wait(); err == nil {
			t.Error("the other one was not waited for")
		}
	}
}

func TestMaxConnections(t *testing.T) {
	for descriptors, want := range map[uint64]int{0: 8, 64: 8, 256: 64, 1024: 308, 20_000: 7591, 1 << 63: 419021} {
		got := maxConnections(descriptors)
		if got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
		if got > 8 && uint64(got+got/4)*2+minReserved > descriptors {
			t.Errorf("%d descriptors: %d connections leave fewer than %d", descriptors, got, minReserved)
		}
	}
}
