package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// makeTime is how long `make -j2` takes for a Makefile.
func (e *env) makeTime(makefile string) (time.Duration, error) {
	dir, err := e.fresh()
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), []byte(makefile), 0o600); err != nil {
		return 0, err
	}
	// -r: no built-in rules are looked for; that is make at its best.
	cmd := exec.CommandContext(e.ctx, "make", "-r", "-s", "-j2")
	cmd.Dir = dir
	// A make above this one must not pass its own flags and job slots on.
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MFLAGS=", "MAKELEVEL=")
	return timed(cmd)
}

// xargsTime is how long `xargs -P2` takes for n runs of a program, without arguments.
func (e *env) xargsTime(n int, program string) (time.Duration, error) {
	cmd := exec.CommandContext(e.ctx, "xargs", "-P2", "-I{}", program)
	cmd.Stdin = strings.NewReader(strings.Join(numbers(n), "\n"))
	return timed(cmd)
}

func timed(cmd *exec.Cmd) (time.Duration, error) {
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%.2000s", cmd.Args[0], err, out)
	}
	return time.Since(begin), nil
}

// loopSource keeps two children of vfork going until n have ended: the least that
// any program has to do for so many processes.
const loopSource = `
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
	int n = atoi(argv[1]), live = 0, status;
	while (n > 0 || live > 0) {
		if (n > 0 && live < 2) {
			if (vfork() == 0) { execl(argv[2], argv[2], (char *)0); _exit(127); }
			n--; live++;
		} else if (wait(&status) > 0) {
			if (status != 0) return 1;
			live--;
		}
	}
	return 0;
}
`

// loopTime is how long a C loop takes for n runs of a program; ok is false where
// there is no C compiler.
func (e *env) loopTime(n int, program string) (took time.Duration, ok bool, err error) {
	if _, err := exec.LookPath("cc"); err != nil {
		return 0, false, nil
	}
	binary := filepath.Join(e.dir, "loop")
	if _, err := os.Stat(binary); err != nil {
		cmd := exec.CommandContext(e.ctx, "cc", "-O2", "-x", "c", "-o", binary, "-")
		cmd.Stdin = strings.NewReader(loopSource)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, false, fmt.Errorf("cc: %w\n%s", err, out)
		}
	}
	took, err = timed(exec.CommandContext(e.ctx, binary, fmt.Sprint(n), program))
	return took, err == nil, err
}
