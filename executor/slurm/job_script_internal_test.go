package slurm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestSignalAtEachLineOfTheJobScript: whichever line the signal of a kill or of a timeout comes before, the task
// ends by SIGTERM, long before its grace is over, and the script writes the end.
func TestSignalAtEachLineOfTheJobScript(t *testing.T) {
	lines := strings.SplitAfter(jobScript, "\n")
	begun := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, `> "$dir/begun"`) })
	wait := slices.Index(lines, "\twait $task\n")
	if begun < 0 || wait < begun {
		t.Fatalf("the task is begun in line %d and awaited in line %d", begun, wait)
	}
	for _, c := range []struct{ send, cause string }{
		{"kill -USR1 $$", "killed\n"}, {"kill -ALRM $$", "timed out\n"}, {"kill -USR1 $$; kill -ALRM $$", "killed\n"},
	} {
		for at := begun + 1; at <= wait; at++ {
			dir := t.TempDir()
			script := "dir=" + shellQuote(dir) + "\ntimeout=1000\ngrace=1000\n" + strings.Join(slices.Insert(slices.Clone(lines), at, c.send+"\n"), "")
			run, err := attemptScript(&executor.Order{Command: []string{"sleep", "1000"}}, nil, "/", dir)
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"job": "name 0\n", "run": run, "script": script} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err = runJobScript(t, filepath.Join(dir, "script"))
			end, _ := os.ReadFile(filepath.Join(dir, "end"))
			cause, _ := os.ReadFile(filepath.Join(dir, "cause"))
			if !strings.HasPrefix(string(end), "143\n") || string(cause) != c.cause {
				t.Errorf("%s before %q: %v, end %q, cause %q", c.send, lines[at], err, end, cause)
			}
		}
	}
}

// runJobScript runs a job's script in a process group of its own, and ends what is left of that group.
func runJobScript(t *testing.T, path string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", path)
	cmd.Env = append(os.Environ(), "SLURM_JOB_NAME=name", "SLURM_ARRAY_JOB_ID=7", "SLURM_ARRAY_TASK_ID=0", "SLURMD_NODENAME=n1")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // the clock, which may have ended
	return err
}
