package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

func examples(t *testing.T) string {
	t.Helper()
	root, err := testenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "examples")
}

func example(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestExamples runs every file of examples/ to COMPLETED and checks its purpose.
func TestExamples(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s := e2etest.Start(t, e2etest.Dir(examples(t)))
	files, err := filepath.Glob(filepath.Join(examples(t), "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	// For each example: the number of its tasks, a task, and the output of that task.
	shows := map[string]struct {
		tasks        int
		task, output string
	}{
		"quickstart.json": {2, "simple_1", "works on job 2"},
		"seed.json":       {2, "simple_0", "Echoing script.py 1 env is not found, value is >><< \n"},
		"diamond.json":    {4, "bottom", "bottom\n"},
		"pipeline.json":   {7, "load", "into warehouse"},
		"matrix.json":     {16, "package_2", "for windows, both"},
		"generator.json":  {9, "work-3_1", "hello from item 3, shard b\n"},
		"retry.json":      {2, "flaky", "attempt 2: the file is there"},
		"wordcount.json":  {8, "verify", "20000 words\n"},
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			want, ok := shows[name]
			if !ok {
				t.Fatalf("no test knows what %s shows", name)
			}
			text := example(t, name)
			if name == "seed.json" {
				text = substitutePython(t, text)
			}
			s.Want(200, "POST", "/v1/dagrun/validate", text)
			run := s.Complete(text)
			if len(run.TaskStates) != want.tasks {
				t.Errorf("%d tasks, want %d: %v", len(run.TaskStates), want.tasks, run.TaskStates)
			}
			a := run.TaskAttempts[want.task]
			if len(a) == 0 || !strings.Contains(a[len(a)-1].OutputLog, want.output) {
				t.Errorf("%s: %+v, want the output %q", want.task, a, want.output)
			}
		})
	}
	if len(files) != len(shows) {
		t.Errorf("%d examples, %d are known", len(files), len(shows))
	}
}

// substitutePython keeps the seed example unchanged where its Python is installed. Elsewhere it
// substitutes a program with the same output.
func substitutePython(t *testing.T, text string) string {
	if _, err := os.Stat("/usr/bin/python3"); err == nil {
		return text
	}
	t.Log("no /usr/bin/python3 here: a shell script takes its place")
	script := filepath.Join(t.TempDir(), "python3")
	body := "#!/bin/sh\ntest -e \"$1\" && echo \"Echoing $* env is not found, value is >><< \"\n"
	if err := os.WriteFile(script, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(text, "/usr/bin/python3", script, 1)
}

// TestDemo runs the script of the demo. It shows the end of the run and its record, and leaves no
// process or file.
func TestDemo(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	runDemo(t, "demo.sh", "COMPLETED", "simple_1", "works on job 2", `"dagStateChanges"`)
}

// TestDemoCluster runs the script of the cluster's demo: the run survives the loss of the leader and its
// folder. The script fails if an attempt begins twice, or a task again that was COMPLETED before the loss.
func TestDemoCluster(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	runDemo(t, "demo-cluster.sh", "which leads the run, is lost", "201 COMPLETED", "The fan-out has 200 COMPLETED tasks of 200. No attempt began twice")
}

// runDemo runs a script of the examples. It must succeed, print all of want, and leave no process or file.
func runDemo(t *testing.T, script string, want ...string) {
	t.Helper()
	tmp := t.TempDir()
	cmd := exec.Command("sh", filepath.Join(examples(t), script), e2etest.Binary())
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range want {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %s:\n%s", want, out)
		}
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v (%v)", left, err)
	}
	// A worker ends soon after its server.
	e2etest.Eventually(t, "the demo leaves no process", func() bool {
		for _, p := range globs("/proc/[0-9]*/cmdline") {
			if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), tmp) {
				return false
			}
		}
		return true
	})
}
