package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestAnyDataPath: a server works in, and comes back to, whatever folder the kernel takes,
// beside neighbours that a pattern would match.
func TestAnyDataPath(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	for _, name := range []string{"q[1]", "*", "a b\"'$(x)`", "new\nline", "%41%d", "-dash", "b\xff\xfe", "back\\slash",
		strings.Repeat("long", 30) + "/" + strings.Repeat("deep", 40)} {
		t.Run("", func(t *testing.T) {
			root := t.TempDir()
			for _, neighbour := range []string{"q1", "neighbour"} {
				if err := os.MkdirAll(filepath.Join(root, neighbour, "db"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, neighbour, "db", "00001.mem"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			data := filepath.Join(root, name)
			relative := e2etest.Data(name)
			s := e2etest.Start(t, relative, e2etest.Dir(root))
			doc := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo short; head -c 20000 /dev/zero"), "b": e2etest.Sh("true").After("a")}))
			long := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("while ! test -e '" + root + "/go'; do sleep 0.02; done; echo found")}))
			s.AwaitTask(long, "a", "RUNNING")
			s = s.Crash()
			if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s.Await(long, "COMPLETED")
			if a := s.Get(long).TaskAttempts["a"]; len(a) != 1 || a[0].OutputLog != "found\n" {
				t.Errorf("in %q: the attempt was not found again: %+v", name, a)
			}
			if log := s.Want(200, "GET", e2etest.Path(uint64(doc.RunID), "/task/a/log"), "").Body; len(log) != 20006 {
				t.Errorf("in %q: output of %d bytes", name, len(log))
			}
			for _, neighbour := range []string{"q1", "neighbour"} {
				if _, err := os.Stat(filepath.Join(root, neighbour, "db", "00001.mem")); err != nil {
					t.Errorf("in %q: a neighbour's file: %v", name, err)
				}
			}
			if _, _, err := s.Stop(e2etest.Patience); err != nil {
				t.Error(err)
			}
			if err := servertest.EndWorkers(data, e2etest.Patience); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUmask: what a server and its worker make is their user's alone, whatever the umask
// of the launch; tasks get that one.
func TestUmask(t *testing.T) {
	script := filepath.Join(t.TempDir(), "launch")
	for _, mask := range []string{"0000", "0027"} {
		text := "#!/bin/sh\numask " + mask + "\nexec " + e2etest.Binary() + " \"$@\"\n"
		if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		data := filepath.Join(t.TempDir(), "data")
		s := e2etest.Start(t, e2etest.Program(script), e2etest.Data(data))
		doc := s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("umask; head -c 20000 /dev/zero >&2")}))
		if got := doc.TaskAttempts["a"][0].OutputLog; got != mask+"\n" {
			t.Errorf("umask of the launch %s, the task's is %q", mask, got)
		}
		err := filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("umask %s: %s: mode %v", mask, path, info.Mode())
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	text := "#!/bin/sh\numask 0277\nexec " + e2etest.Binary() + " \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := e2etest.TryStart(t, e2etest.Program(script)); err == nil || !strings.Contains(err.Error(), "umask 0277 takes rights") {
		t.Errorf("a umask that locks the user out: %v", err)
	}
}

// TestIncompleteFolder: a folder of which a part is gone, or is another's, is refused with
// what to do, and nothing in it is changed. What runs is left alone.
func TestIncompleteFolder(t *testing.T) {
	t.Parallel()
	s, dir := e2etest.Start(t), t.TempDir()
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("echo $CARAVAN_ATTEMPT >> began; while ! test -e go; do sleep 0.02; done").Job("workDir", dir)}))
	began := func() string { b, _ := os.ReadFile(filepath.Join(dir, "began")); return string(b) }
	e2etest.Eventually(t, "the task runs", func() bool { return began() == "1\n" })
	s.Kill()
	data := s.Config().Data
	away := filepath.Join(t.TempDir(), "away")
	for name, says := range map[string]string{"db": "db/ is missing", "output": "output/ is missing", "worker": "worker/ is missing"} {
		at := filepath.Join(data, name)
		for _, instead := range []string{"nothing", "link"} {
			if err := os.Rename(at, away); err != nil {
				t.Fatal(err)
			}
			if instead == "link" {
				says = name + " is a symbolic link"
				if err := os.Symlink(away, at); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := e2etest.TryStart(t, e2etest.Data(data)); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s in place of %s: %v", instead, name, err)
			}
			if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if err := os.Rename(away, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(data, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := e2etest.TryStart(t, e2etest.Data(data)); err == nil || !strings.Contains(err.Error(), "12345") {
			t.Errorf("another user's folder: %v", err)
		}
		if err := os.Chown(data, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	identity := filepath.Join(data, "identity")
	good, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{identity, identity + ".copy"} {
		if err := os.WriteFile(name, bytes.Replace(good, []byte("inode "), []byte("inode 9"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e2etest.TryStart(t, e2etest.Data(data)); err == nil || !strings.Contains(err.Error(), "identity: damaged") {
		t.Errorf("a damaged identity: %v", err)
	}
	if err := os.WriteFile(identity, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s = s.Restart()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(run, "COMPLETED")
	if got := fmt.Sprint(began(), len(s.Get(run).TaskAttempts["a"])); got != "1\n1" {
		t.Errorf("begun and recorded: %q", got)
	}
}
