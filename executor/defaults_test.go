package executor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// A commandString is run by /bin/sh; a task without a folder of its own runs in
// the executor's.
func TestShellAndFolder(t *testing.T) {
	r := newRig(t, nil)
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	out := r.text(r.run(`readlink /proc/$$/exe; readlink /proc/$$/cwd; tr '\0' ' ' </proc/$$/cmdline`).Record.Stdout)
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) != 3 || lines[0] != shell || lines[1] != own || !strings.Contains(lines[2], " -c readlink ") {
		t.Errorf("printed %q, want the shell %s in the folder %s", out, shell, own)
	}
	dir := t.TempDir()
	if out := r.text(r.run("pwd", func(o *executor.Order) { o.Dir = dir }).Record.Stdout); out != dir+"\n" {
		t.Errorf("in %q, want %s", out, dir)
	}
}

// Without a limit of one's own 64 MiB of a stream are kept, half from each end.
func TestDefaultLimitOfOutput(t *testing.T) {
	r := newRig(t, nil)
	const limit = 64 << 20
	rec := r.run(`head -c 67108864 /dev/zero; head -c 67108865 /dev/zero >&2`).Record
	if rec.Result != messages.AttemptSucceeded {
		t.Fatalf("%+v", rec)
	}
	if o := rec.Stdout; o.Size != limit || o.Head+o.Tail != limit {
		t.Errorf("64 MiB: %+v", o)
	}
	if o := rec.Stderr; o.Size != limit+1 || o.Head != limit/2 || o.Tail != limit/2 {
		t.Errorf("64 MiB and a byte: %+v", o)
	}
}
