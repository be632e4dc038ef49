package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// absence is an error that says what a reference would need.
type absence string

func (a absence) Error() string { return string(a) }

// missing tells whether a reference could not be measured for want of something.
func missing(err error) bool {
	var a absence
	return errors.As(err, &a)
}

// installPeers is how what a reference needs is had.
const installPeers = "`make bench-peers` installs it"

// found is an error where a program is not on the PATH.
func found(program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return absence(program + " is not here; " + installPeers)
	}
	return nil
}

// peer is the command of a reference. It has a small environment, as tasks have:
// what a variable costs each process would count.
func (e *env) peer(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(e.ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8"}
	return cmd
}

// inFolder runs a command in a new folder that holds one file.
func (e *env) inFolder(name, text string, cmd *exec.Cmd) (spent, error) {
	dir, err := e.fresh()
	if err != nil {
		return spent{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		return spent{}, err
	}
	cmd.Dir = dir
	return timed(cmd)
}

// makeTime is what `make -j2` takes for a Makefile. -r: no built-in rules are looked
// for; that is make at its best.
func (e *env) makeTime(makefile string) (spent, error) {
	return e.inFolder("Makefile", makefile, e.peer("make", "-r", "-s", "-j2"))
}

// ninjaTime is what `ninja -j2` takes for a build.ninja.
func (e *env) ninjaTime(build string) (spent, error) {
	if err := found("ninja"); err != nil {
		return spent{}, err
	}
	return e.inFolder("build.ninja", build, e.peer("ninja", "-j2", "--quiet"))
}

// xargsTime is what `xargs -P2` takes for n runs of a program, without arguments.
func (e *env) xargsTime(n int, program string) (spent, error) {
	cmd := e.peer("xargs", "-P2", "-I{}", program)
	cmd.Stdin = strings.NewReader(strings.Join(numbers(n), "\n"))
	return timed(cmd)
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

// compiled is the path of a C program, compiled once.
func (e *env) compiled(name, source string) (string, error) {
	if _, err := exec.LookPath("cc"); err != nil {
		return "", absence("there is no C compiler (cc)")
	}
	binary := filepath.Join(e.dir, name)
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	cmd := exec.CommandContext(e.ctx, "cc", "-O2", "-x", "c", "-o", binary, "-")
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cc: %w\n%s", err, out)
	}
	return binary, nil
}

// loopTime is what a C loop takes for n runs of a program.
func (e *env) loopTime(n int, program string) (spent, error) {
	binary, err := e.compiled("loop", loopSource)
	if err != nil {
		return spent{}, err
	}
	return timed(e.peer(binary, fmt.Sprint(n), program))
}
