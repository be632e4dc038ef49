package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// patience is how long one of Slurm's commands may take.
const patience = time.Minute

// programs runs Slurm's commands, in an environment of their own: sbatch hands it on to
// the job, and SBATCH_ variables would change what it does.
type programs struct {
	path string
	env  []string
}

func newPrograms(getenv func(string) string) programs {
	p := programs{path: getenv("PATH")}
	for _, name := range []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "SLURM_CONF"} {
		if v := getenv(name); v != "" {
			p.env = append(p.env, name+"="+v)
		}
	}
	return p
}

// find returns an error that names the command which is not there.
func (p *programs) find() error {
	for _, name := range []string{"sbatch", "squeue", "scancel"} {
		if p.lookup(name) == "" {
			return fmt.Errorf("slurm: %s is not in PATH: Slurm's commands must be installed, and set up, where the server runs", name)
		}
	}
	return nil
}

// lookup finds a command; "" when there is none.
func (p *programs) lookup(name string) string {
	for _, dir := range filepath.SplitList(p.path) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// commandError is a command that failed, with what it said.
type commandError struct {
	name string
	said string // "" when it said nothing
	err  error
}

func (e *commandError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("%s: %v", e.name, e.err)
	}
	return e.said
}

func (e *commandError) Unwrap() error { return e.err }

// run runs a command to its end and returns what it printed.
func (p *programs) run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	path := p.lookup(name)
	if path == "" {
		return nil, &commandError{name: name, err: errors.New("not in PATH")}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = p.env, "/"
	cmd.Stdin = strings.NewReader(stdin)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer: %w", ctx.Err())
		}
		return out.Bytes(), &commandError{name: name, said: plain(name, said.String()), err: err}
	}
	return out.Bytes(), nil
}

// plain is what a command said, on one line and without the prefixes that it gives
// each of its lines.
func plain(name, said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(strings.TrimPrefix(line, name+": "), "error: ")
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// passing are parts of messages about what will be better later, or whose outcome is
// not known: the controller is away or busy, or the credentials' daemon is.
var passing = []string{
	"Unable to contact slurm controller", "temporarily unable", "temporarily unavailable", "Socket timed out",
	"Connection refused", "Connection timed out", "Zero Bytes were transmitted", "Transport endpoint",
	"uthentication", "Insane message length", "in standby", "Unexpected message received", "no answer", "Job submission disabled",
}

// isPassing tells whether it is worth while to try again. A command that did not even
// run, or did not end, is.
func isPassing(err error) bool {
	var ce *commandError
	if !errors.As(err, &ce) || ce.said == "" {
		return true
	}
	return containsAny(ce.said, passing)
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
