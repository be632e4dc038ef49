package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestServersFilesAreApartFromItsData: a token file and an audit log in a data folder are refused
// by name: in the server's own, which need not exist yet, and in that of another one.
func TestServersFilesAreApartFromItsData(t *testing.T) {
	t.Parallel()
	other, _ := stopped(t, "true")
	data := filepath.Join(t.TempDir(), "data")
	for _, option := range []string{"--token-file", "--audit-log"} {
		for _, folder := range []string{data, other.Config().Data} {
			file := filepath.Join(folder, "mine")
			_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data, option, file)
			if want := fmt.Sprintf("%s: %s lies in the data folder %s", option, file, folder); code != 2 || !strings.Contains(errs, want) {
				t.Errorf("exit %d, want %q: %s", code, want, errs)
			}
			if _, err := os.Lstat(file); err == nil {
				t.Errorf("%s was made", file)
			}
		}
	}
	_, errs, code := runBinary(t, nil, "token", "new", "a", "read", "--token-file", filepath.Join(other.Config().Data, "mine"))
	if code != 2 || !strings.Contains(errs, "lies in the data folder") {
		t.Errorf("token new: exit %d: %s", code, errs)
	}
}

// TestWhatAKilledRunLeaves: the temporary folder of a `caravan run` that was killed stays as long
// as its tasks run, and then the next `caravan run` removes it. That of one that lives stays.
func TestWhatAKilledRunLeaves(t *testing.T) {
	t.Parallel()
	temporary, work := t.TempDir(), t.TempDir()
	spec := func(name, script string) string {
		path := filepath.Join(work, name)
		text, err := json.Marshal(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(script)}))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	started, end := filepath.Join(work, "started"), filepath.Join(work, "end")
	env := []string{"TMPDIR=" + temporary, "CARAVAN_SERVER=unix:" + filepath.Join(work, "none")}
	killed := exec.Command(e2etest.Binary(), "run", spec("patient", fmt.Sprintf("touch %s; while [ ! -e %s ]; do sleep 0.05; done", started, end)))
	killed.Env = append(os.Environ(), env...)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(end, nil, 0o600)
		_ = killed.Process.Kill()
	})
	e2etest.Eventually(t, "the task of the command starts", func() bool { _, err := os.Stat(started); return err == nil })
	left := func() []string {
		paths, err := filepath.Glob(filepath.Join(temporary, "caravan-run-*"))
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	next := func(name string) {
		t.Helper()
		if out, errs, code := runBinary(t, env, "run", spec(name, "true")); code != 0 {
			t.Fatalf("%s: exit %d: %s%s", name, code, out, errs)
		}
	}
	next("beside")
	if n := len(left()); n != 1 {
		t.Errorf("%d folders are there beside a command that lives, want its own", n)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	next("after")
	if n := len(left()); n != 1 {
		t.Errorf("%d folders are there while the task of the killed command runs, want its own", n)
	}
	if err := os.WriteFile(end, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range left() { // else it ends after a minute
		if err := servertest.EndWorkers(filepath.Join(path, "data"), e2etest.Patience); err != nil {
			t.Fatal(err)
		}
	}
	next("last")
	if paths := left(); len(paths) != 0 {
		t.Errorf("left behind: %q", paths)
	}
}
