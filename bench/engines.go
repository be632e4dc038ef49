package main

import (
	_ "embed"
	"encoding/json"
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

	"github.com/caravan-dag/caravan/internal/servertest"
)

// engine is another system that can do the same work. It does work, n times, of
// no-ops or of a command with a number of slots, and says what it measured: seconds,
// rate (1/s), p50 and p99 (ms). Works are fan, chain, empty and submit.
type engine struct {
	name string
	run  func(e *env, work string, n int, command ...string) (map[string]float64, error)
}

// The engines, by the names that rows begin with.
const (
	riverPostgres = "River on PostgreSQL"
	riverSQLite   = "River on SQLite"
	dask          = "Dask"
)

func engines() []engine {
	return []engine{
		{riverPostgres, func(e *env, work string, n int, command ...string) (map[string]float64, error) {
			connection, err := e.postgres()
			if err != nil {
				return nil, err
			}
			return e.river("postgres:"+connection, work, n, command)
		}},
		{riverSQLite, func(e *env, work string, n int, command ...string) (map[string]float64, error) {
			dir, err := e.fresh()
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
			return e.river("sqlite:"+filepath.Join(dir, "river.db"), work, n, command)
		}},
		{dask, (*env).dask},
	}
}

// beside has engines do a work and puts what they measured under their name and a
// suffix per figure. A shortened run and a comparison leave them out: they look at Caravan alone.
func (e *env) beside(values map[string]float64, names []string, suffixes map[string]string, work string, n int, command ...string) error {
	for _, eng := range engines() {
		if !slices.Contains(names, eng.name) {
			continue
		}
		got, err := map[string]float64(nil), e.withoutEngines()
		if err == nil {
			got, err = eng.run(e, work, n, command...)
		}
		if err != nil && !missing(err) {
			return fmt.Errorf("%s: %w", eng.name, err)
		}
		for figure, suffix := range suffixes {
			if err != nil {
				e.lacks(eng.name+suffix, err)
			} else {
				values[eng.name+suffix] = got[figure]
			}
		}
	}
	return nil
}

// figures runs an engine's program, which prints a line of JSON.
func figures(cmd *exec.Cmd) (got map[string]float64, err error) {
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

// river runs the program of peers/river, a module of its own, which is built once.
func (e *env) river(database, work string, n int, command []string) (map[string]float64, error) {
	binary := filepath.Join(e.dir, "river")
	if _, err := os.Stat(binary); err != nil {
		root, err := servertest.Root()
		if err != nil {
			return nil, absence("River is built from the source tree: " + err.Error())
		}
		fmt.Fprintln(e.diag, "building the program for River")
		cmd := exec.CommandContext(e.ctx, "go", "build", "-o", binary, ".")
		cmd.Dir = filepath.Join(root, "bench", "peers", "river")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			last := out[max(0, len(out)-200):]
			return nil, absence(fmt.Sprintf("River cannot be built: %s", strings.Join(strings.Fields(string(last)), " ")))
		}
	}
	args := []string{"-database", database, "-work", work, "-n", fmt.Sprint(n), "-program", strings.Join(command, " ")}
	if len(command) > 0 {
		args = append(args, "-slots", "2")
	}
	return figures(e.peer(binary, args...))
}

// postgres is the connection string of a PostgreSQL of this process's own: started
// at the first call, over a Unix socket, with the settings that it comes with. It
// ends with this process.
func (e *env) postgres() (string, error) {
	if e.postgresAt != "" {
		return e.postgresAt, nil
	}
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return "", absence("PostgreSQL is not here; " + installPeers)
	}
	bin := bins[len(bins)-1]
	dir, err := e.fresh()
	if err != nil {
		return "", err
	}
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
	if os.Getuid() == 0 { // as root it refuses to run
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", absence("PostgreSQL cannot run as root, and there is no user postgres")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		// It has to get to its folder, and may look into no other.
		if err := os.Chmod(e.dir, 0o711); err != nil {
			return "", err
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", err
		}
	}
	command := func(program string, args ...string) *exec.Cmd {
		cmd := e.peer(filepath.Join(bin, program), args...)
		cmd.Dir, cmd.SysProcAttr = dir, attr
		return cmd
	}
	data := filepath.Join(dir, "data")
	if _, err := timed(command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")); err != nil {
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
	err = e.until(50*time.Millisecond, func() (bool, error) {
		if command("pg_isready", "-q", "-h", dir).Run() == nil {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("PostgreSQL does not take connections in %s", dir)
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

// dask runs peers/with_dask.py with the first Python that has Dask.
func (e *env) dask(work string, n int, command ...string) (map[string]float64, error) {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if e.peer(python, "-c", "import distributed").Run() != nil {
			continue
		}
		file := filepath.Join(e.dir, "with_dask.py")
		if err := os.WriteFile(file, []byte(daskProgram), 0o600); err != nil {
			return nil, err
		}
		cmd := e.peer(python, append([]string{file, work, fmt.Sprint(n)}, command...)...)
		cmd.Dir = e.dir
		return figures(cmd)
	}
	return nil, absence("no python3 has dask.distributed; " + installPeers)
}
