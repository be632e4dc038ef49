package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// absentError says why a reference cannot be measured on this machine. It does not fail a workload:
// the table shows the reason in place of the figure. A reference that is installed and fails is another
// error, which ends the workload: its figure would be missing without a reason.
type absentError string

func (a absentError) Error() string { return string(a) }

// isAbsent reports whether a reference could not be measured because something is missing.
func isAbsent(err error) bool {
	var a absentError
	return errors.As(err, &a)
}

// installPeers tells the user how to get a missing reference.
const installPeers = "`make bench-peers` installs it"

// requireProgram returns an absentError when a program is not on the PATH. It is not asked for make and
// xargs, which are expected on every machine.
func requireProgram(program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return absentError(program + " is not installed; " + installPeers)
	}
	return nil
}

// peerCommand returns the command of a reference. Its environment is as small as that of tasks,
// because each variable adds to the cost of a process. An interrupt of the benchmark kills the command.
func (e *benchEnv) peerCommand(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(e.ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8"}
	return cmd
}

// inFolder runs a command in a new folder that holds one file, and removes the folder. Neither step is
// part of the measured time.
func (e *benchEnv) inFolder(name, text string, cmd *exec.Cmd) (commandUsage, error) {
	dir, err := e.newFolder()
	if err != nil {
		return commandUsage{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		return commandUsage{}, err
	}
	cmd.Dir = dir
	return runTimed(cmd)
}

// makeTime measures `make -j2` with a Makefile. The option -r turns the search for built-in rules
// off, which is make at its best. A recipe without characters of the shell is executed by make itself
// (GNU make, job.c, construct_command_argv), so a task is one process.
func (e *benchEnv) makeTime(makefile string) (commandUsage, error) {
	return e.inFolder("Makefile", makefile, e.peerCommand("make", "-r", "-s", "-j2"))
}

// ninjaTime measures `ninja -j2` with a build.ninja. ninja runs every command by /bin/sh -c
// (src/subprocess-posix.cc), so a task loads the shell, too. That is what a user of ninja gets.
func (e *benchEnv) ninjaTime(build string) (commandUsage, error) {
	if err := requireProgram("ninja"); err != nil {
		return commandUsage{}, err
	}
	return e.inFolder("build.ninja", build, e.peerCommand("ninja", "-j2", "--quiet"))
}

// xargsTime measures `xargs -P2` for n runs of a program without arguments. The option -I makes one
// process per line and does not pass the line on. xargs does not know a graph, so the first and the
// last task are left out.
func (e *benchEnv) xargsTime(n int, program string) (commandUsage, error) {
	cmd := e.peerCommand("xargs", "-P2", "-I{}", program)
	cmd.Stdin = strings.NewReader(strings.Join(numberStrings(n), "\n"))
	return runTimed(cmd)
}

// loopSource keeps two children of vfork running until n have ended: the lower bound of the work for
// so many processes. It does not take output, set limits or make process groups. A task that fails
// ends it with 1.
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

// compileC compiles a C program once and returns its path, named after the program. Without a compiler
// it returns an absentError, and the workload goes on without this reference.
func (e *benchEnv) compileC(name, source string) (string, error) {
	if _, err := exec.LookPath("cc"); err != nil {
		return "", absentError("a C compiler (cc) is not installed")
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

// loopTime measures the C loop for n runs of a program.
func (e *benchEnv) loopTime(n int, program string) (commandUsage, error) {
	binary, err := e.compileC("loop", loopSource)
	if err != nil {
		return commandUsage{}, err
	}
	return runTimed(e.peerCommand(binary, fmt.Sprint(n), program))
}

// peerEngine is another system that can do the same work: n no-ops, or n runs of a command in a
// number of slots. The kinds of work are fan, chain, empty and submit. It returns seconds, rate
// (1/s), p50 and p99 (ms).
//
//	work    what n counts                 figures
//	fan     tasks in the middle           seconds, rate of n+2 tasks
//	chain   tasks of the one chain        seconds, p50 = p99: of the whole chain
//	empty   chains of one task, in turn   seconds, p50, p99 of one
//	submit  not used; 3 s of insertions   seconds, rate, p50, p99 of one insertion; River only
//
// The figures are without the start of the engine and the migration of its database.
type peerEngine struct {
	name string
	run  func(e *benchEnv, work string, n int, command ...string) (map[string]float64, error)
}

// The names of the engines, with which their rows begin.
const (
	riverPostgres = "River on PostgreSQL"
	riverSQLite   = "River on SQLite"
	dask          = "Dask"
)

func peerEngines() []peerEngine {
	return []peerEngine{
		{riverPostgres, func(e *benchEnv, work string, n int, command ...string) (map[string]float64, error) {
			connection, err := e.startPostgres()
			if err != nil {
				return nil, err
			}
			return e.runRiver("postgres:"+connection, work, n, command)
		}},
		{riverSQLite, func(e *benchEnv, work string, n int, command ...string) (map[string]float64, error) {
			dir, err := e.newFolder()
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
			return e.runRiver("sqlite:"+filepath.Join(dir, "river.db"), work, n, command)
		}},
		{dask, (*benchEnv).runDask},
	}
}

// measureEngines has engines do some work and stores each figure under the name of the engine and
// the suffix of the figure: suffixes maps the figures that are wanted to their suffixes, which may be
// "". Shortened runs and comparisons of two binaries leave the engines out, because they measure
// Caravan alone. An engine that is missing is noted under all of its metrics.
func (e *benchEnv) measureEngines(values map[string]float64, names []string, suffixes map[string]string, work string, n int, command ...string) error {
	for _, eng := range peerEngines() {
		if !slices.Contains(names, eng.name) {
			continue
		}
		got, err := map[string]float64(nil), e.withoutEngines()
		if err == nil {
			got, err = eng.run(e, work, n, command...)
		}
		if err != nil && !isAbsent(err) {
			return fmt.Errorf("%s: %w", eng.name, err)
		}
		for figure, suffix := range suffixes {
			if err != nil {
				e.noteAbsence(eng.name+suffix, err)
			} else {
				values[eng.name+suffix] = got[figure]
			}
		}
	}
	return nil
}

// runPeerProgram runs the program of an engine, which measures itself and prints its figures as a line
// of JSON. So the start of the program and of its interpreter do not count.
func runPeerProgram(cmd *exec.Cmd) (got map[string]float64, err error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%.2000s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return got, nil
}

// runRiver runs the program in peers/river. It is a module of its own and is built once, with the go
// command and the module cache or proxy of the machine. A build that fails, such as one without a
// network, is noted as the reason of the absence. No-ops are worked 1,000 at a time, the default of the
// program, and processes two at a time.
func (e *benchEnv) runRiver(database, work string, n int, command []string) (map[string]float64, error) {
	binary := filepath.Join(e.dir, "river")
	if _, err := os.Stat(binary); err != nil {
		root, err := testenv.ModuleRoot()
		if err != nil {
			return nil, absentError("River is built from the source tree: " + err.Error())
		}
		fmt.Fprintln(e.diag, "building the program for River")
		cmd := exec.CommandContext(e.ctx, "go", "build", "-o", binary, ".")
		cmd.Dir = filepath.Join(root, "bench", "peers", "river")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			last := out[max(0, len(out)-200):]
			return nil, absentError(fmt.Sprintf("River cannot be built: %s", strings.Join(strings.Fields(string(last)), " ")))
		}
	}
	args := []string{"-database", database, "-work", work, "-n", fmt.Sprint(n), "-program", strings.Join(command, " ")}
	if len(command) > 0 {
		args = append(args, "-slots", "2")
	}
	return runPeerProgram(e.peerCommand(binary, args...))
}

// startPostgres returns the connection string of a PostgreSQL server. The first call starts it, on a
// Unix socket and with default settings: with fsync and synchronous_commit on, its commits are as
// durable as those of Caravan. Its data is below the folder of all data, on the same disk. It ends with
// this process, also after a SIGKILL: Pdeathsig of the thread that started it sends SIGINT, which is
// PostgreSQL's fast shutdown.
func (e *benchEnv) startPostgres() (string, error) {
	if e.postgresAt != "" {
		return e.postgresAt, nil
	}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return "", absentError("PostgreSQL is not installed; " + installPeers)
	}
	bin := bins[len(bins)-1]
	dir, err := e.newFolder()
	if err != nil {
		return "", err
	}
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", absentError("PostgreSQL cannot run as root, and the user postgres does not exist")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		// The user must reach the folder, without reading others on the way.
		if err := os.Chmod(e.dir, 0o711); err != nil {
			return "", err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", err
		}
	}
	command := func(program string, args ...string) *exec.Cmd {
		cmd := e.peerCommand(filepath.Join(bin, program), args...)
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	data := filepath.Join(dir, "data")
	if _, err := runTimed(command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")); err != nil {
		return "", err
	}
	server := command("postgres", "-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+dir)
	if err := server.Start(); err != nil {
		return "", err
	}
	e.atEnd = append(e.atEnd, func() {
		_ = server.Process.Signal(syscall.SIGINT)
		_ = server.Wait()
	})
	connection := fmt.Sprintf("host=%s user=postgres dbname=postgres", dir)
	deadline := time.Now().Add(30 * time.Second)
	err = e.pollUntil(50*time.Millisecond, func() (bool, error) {
		if command("pg_isready", "-q", "-h", dir).Run() == nil {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("PostgreSQL does not accept connections in %s", dir)
		}
		return false, nil
	})
	if err != nil {
		return "", err
	}
	e.postgresAt = connection
	return connection, nil
}

//go:embed peers/with_dask.py
var daskProgram string

// runDask runs peers/with_dask.py with the first Python that has Dask. Debian's Python comes first,
// because `make bench-peers` installs Dask there and another python3 may be first on the PATH.
func (e *benchEnv) runDask(work string, n int, command ...string) (map[string]float64, error) {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if e.peerCommand(python, "-c", "import distributed").Run() != nil {
			continue
		}
		file := filepath.Join(e.dir, "with_dask.py")
		if err := os.WriteFile(file, []byte(daskProgram), 0o600); err != nil {
			return nil, err
		}
		cmd := e.peerCommand(python, append([]string{file, work, fmt.Sprint(n)}, command...)...)
		cmd.Dir = e.dir
		return runPeerProgram(cmd)
	}
	return nil, absentError("python3 with dask.distributed is not installed; " + installPeers)
}
