package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestTimed: a command's own part is told from its children's.
func TestTimed(t *testing.T) {
	const sleeps = 20
	e := &benchEnv{ctx: t.Context(), dir: t.TempDir()}
	s, err := runTimed(e.peerCommand("/bin/sh", "-c", "for i in $(seq 20); do sleep 0.001; done; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"))
	if err != nil {
		t.Fatal(err)
	}
	// The shell waits for each of its children, and each child sleeps.
	if s.own.switches < sleeps || s.children.switches < sleeps {
		t.Errorf("%d and %d context switches, want %d each at least", s.own.switches, s.children.switches, sleeps)
	}
	if s.own.cpu <= 0 || s.own.plus(s.children).cpu < s.own.cpu || s.wall < sleeps*1e6 {
		t.Errorf("%v", s)
	}
	if _, err := runTimed(e.peerCommand("/bin/sh", "-c", "echo why; exit 3")); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a command that fails: %v, want what it printed", err)
	}
	if _, err := runTimed(exec.Command("/there/is/none")); err == nil {
		t.Error("a command that is not there is measured")
	}
}

func TestProcessor(t *testing.T) {
	for text, want := range map[string]string{
		"": "unnamed processor",
		"processor\t: 0\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\n\nprocessor\t: 1\nmodel\t\t: 2\n": "AMD EPYC (family 23, model 1, stepping 2)",
		"processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n":                    "unnamed processor (implementer 0x41, part 0xd0c)",
	} {
		if got := processorName(text); got != want {
			t.Errorf("%q of %q, want %q", got, text, want)
		}
	}
}
