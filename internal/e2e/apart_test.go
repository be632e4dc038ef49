package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// files is the names of all that lies in a folder.
func files(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// TestNothingIsWrittenIntoADataFolder: a backup, a restore, a salvage, their temporary files
// and another server's folder are refused inside the folder of a server that runs, by its name,
// whatever way leads there; and so is a restore into a folder that holds anything.
func TestNothingIsWrittenIntoADataFolder(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	data, other := s.Config().Data, t.TempDir()
	real, err := filepath.EvalSymlinks(data)
	if err != nil {
		t.Fatal(err)
	}
	good, link := filepath.Join(other, "good"), filepath.Join(other, "link")
	if _, errs, code := runBinary(t, nil, "backup", good, "--server", s.URL); code != 0 {
		t.Fatal(errs)
	}
	stopped := filepath.Join(other, "stopped")
	if _, errs, code := runBinary(t, nil, "restore", good, stopped); code != 0 {
		t.Fatal(errs)
	}
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	before := files(t, data)
	for _, into := range []string{data, data + "/new", data + "/output/new", data + "/db", link, link + "/worker/new", data + "/../" + filepath.Base(data) + "/x"} {
		for _, args := range [][]string{
			{"restore", good, into}, {"restore", good, into, "--resume"}, {"backup", into, "--server", s.URL}, {"backup", into, "--data", stopped},
			{"salvage", stopped, into}, {"check", stopped, "--scratch", into}, {"salvage", stopped, filepath.Join(other, "into"), "--scratch", into},
		} {
			_, errs, code := runBinary(t, nil, args...)
			if code == 0 || !strings.Contains(errs, "data folder "+real) && !strings.Contains(errs, "is a folder") {
				t.Errorf("%q: exit %d: %s", args, code, errs)
			}
		}
	}
	for _, file := range []string{"identity", "db/MANIFEST", "output/0", "new"} {
		_, errs, code := runBinary(t, nil, "backup", filepath.Join(data, file), "--server", s.URL)
		if code != 2 || !strings.Contains(errs, "lies in the data folder "+real) {
			t.Errorf("backup over %s: exit %d: %s", file, code, errs)
		}
	}
	if _, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data+"/worker/new"); code == 0 || !strings.Contains(errs, "lies in the data folder "+real) {
		t.Errorf("serve: exit %d: %s", code, errs)
	}
	if after := files(t, data); after != before {
		t.Errorf("the folder has changed:\n%s\n---\n%s", before, after)
	}
	if err := os.WriteFile(filepath.Join(other, "letter"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := runBinary(t, nil, "restore", good, other); code == 0 || !strings.Contains(errs, "it is not empty") {
		t.Errorf("into a folder that is not empty: exit %d: %s", code, errs)
	}
	for _, target := range []string{"/dev/null", other} {
		if _, errs, code := runBinary(t, nil, "backup", target, "--server", s.URL); code != 2 || !strings.Contains(errs, "it is a ") {
			t.Errorf("backup %s: exit %d: %s", target, code, errs)
		}
	}
	if info, err := os.Lstat("/dev/null"); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Fatal("/dev/null was replaced", err)
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
}

// TestWhatAKilledCheckLeaves is removed by the next one, and what a living one has is not; so
// with backups.
func TestWhatAKilledCheckLeaves(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	data, scratch := s.Config().Data, t.TempDir()
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	// As a killed check leaves it: nobody has a lock on it.
	killed := filepath.Join(scratch, "caravan-offline-1", "view")
	if err := os.MkdirAll(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(killed, "000001.sst"), filepath.Join(scratch, ".caravan-backup-1"), filepath.Join(scratch, "mine")} {
		if err := os.WriteFile(path, []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(scratch, "caravan-offline-2"), 0o700); err != nil {
		t.Fatal(err)
	}
	living, err := os.Open(filepath.Join(scratch, "caravan-offline-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if err := syscall.Flock(int(living.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	left := func() string {
		list, err := os.ReadDir(scratch)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	if out, errs, code := runBinary(t, nil, "check", data, "--scratch", scratch); code != 0 || left() != ".caravan-backup-1 "+filepath.Base(living.Name())+" mine" {
		t.Errorf("check: exit %d: %s%s; left: %s", code, out, errs, left())
	}
	if _, errs, code := runBinary(t, nil, "backup", filepath.Join(scratch, "a.backup"), "--data", data); code != 0 || left() != "a.backup "+filepath.Base(living.Name())+" mine" {
		t.Errorf("backup: exit %d: %s; left: %s", code, errs, left())
	}
}
