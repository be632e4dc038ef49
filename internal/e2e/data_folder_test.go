package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestAnyDataFolderPath: a server works in, and restarts on, any folder name that the kernel
// accepts, next to folders that a glob pattern would match.
func TestAnyDataFolderPath(t *testing.T) {
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
			if err := testenv.EndWorkers(data, e2etest.Patience); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUmask: the files of a server and its worker are accessible to their user alone, whatever the
// umask. Tasks get the umask of the launch.
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
	if _, err := e2etest.TryStart(t, e2etest.Program(script)); err == nil || !strings.Contains(err.Error(), "umask 0277 takes permissions") {
		t.Errorf("a umask that locks the user out: %v", err)
	}
}

// TestIncompleteFolderIsRefused: a folder with a missing part, or a part of another user, is refused
// with advice and stays unchanged. Running tasks are left alone.
func TestIncompleteFolderIsRefused(t *testing.T) {
	e2etest.OneByOne(t)
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

// fileNames lists the names of all files in a folder.
func fileNames(t *testing.T, dir string) string {
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

// TestCommandsRefuseToWriteIntoDataFolders: a backup, a restore, a salvage, their temporary files
// and the folder of another server are refused inside the folder of a running server, with its name,
// on any path that leads there. A restore into a folder with content is refused, too.
func TestCommandsRefuseToWriteIntoDataFolders(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	// A stop writes the inventory of tables. Else the server makes that file after a minute, which is soon
	// over on a busy machine.
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	s = s.Restart()
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
	before := fileNames(t, data)
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
	if after := fileNames(t, data); after != before {
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

// TestLeftoversOfKilledCheckAreRemoved: the next check removes the files of a killed one and keeps
// those of a living one. The same holds for backups.
func TestLeftoversOfKilledCheckAreRemoved(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	data, scratch := s.Config().Data, t.TempDir()
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	// A killed check leaves it like this: without a lock.
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

// replaceByFIFO puts a FIFO in place of a file. The returned function restores the file.
func replaceByFIFO(t *testing.T, path string) (back func()) {
	t.Helper()
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Rename(path+".kept", path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFIFOsInDataFolderAreRefused: a server and the commands that read the folder name a FIFO in
// place of any file, and never wait for its other end.
func TestFIFOsInDataFolderAreRefused(t *testing.T) {
	e2etest.OneByOne(t)
	t.Parallel()
	s := e2etest.Start(t)
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")}))
	data := s.Config().Data
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := testenv.EndWorkers(data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	both := []string{"db/log/state", "db/KEYREGISTRY", "db/MANIFEST"}
	for _, name := range append(both, "db/INVENTORY", "identity", "worker/workers") {
		path := filepath.Join(data, name)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		back := replaceByFIFO(t, path)
		_, errs, code := runBinary(t, nil, "check", data)
		out, _, _ := runBinary(t, nil, "check", data, "-o", "json")
		if code == 0 && name != "identity" || !strings.Contains(errs+out, filepath.Base(name)) {
			t.Errorf("%s: check: exit %d: %s%s", name, code, errs, out)
		}
		for _, n := range both {
			if n != name {
				continue
			}
			_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", data)
			if code == 0 || code < 0 || !strings.Contains(errs, "FIFO") || !strings.Contains(errs, filepath.Base(name)) {
				t.Errorf("%s: serve: exit %d: %s", name, code, errs)
			}
		}
		back()
	}
}

// TestConfigurationMustBeRegularFile: other kinds of files are refused, and reads are bounded.
func TestConfigurationMustBeRegularFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	two := filepath.Join(dir, "two.yaml")
	if err := os.WriteFile(two, []byte("cores: 2\n---\ntoken-file: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ option, path, want string }{
		{"--config", "/dev/zero", "/dev/zero: it is a device"},
		{"--config", fifo, "it is a FIFO"},
		{"--config", two, "line 2, column 1: a second document"},
		{"--token-file", fifo, "it is a FIFO"},
		{"--token-file", "/dev/null", "/dev/null: it is a device"},
	} {
		_, errs, code := runBinary(t, nil, "serve", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "data"), c.option, c.path)
		if code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s %s: exit %d: %s", c.option, c.path, code, errs)
		}
	}
	if _, errs, code := runBinary(t, nil, "token", "new", "a", "read", "--token-file", fifo); code == 0 || !strings.Contains(errs, "it is a FIFO") {
		t.Errorf("token new: exit %d: %s", code, errs)
	}
}

// TestInvalidTLSFilesKeepTheOldOnes: a FIFO in place of a TLS file, and a malformed authority, leave
// the old files in force.
func TestInvalidTLSFilesKeepTheOldOnes(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t, "ours")
	ours.server("first")
	ours.client("client")
	s, url := launchTLS(t, "--tls-cert", ours.path("server"), "--tls-key", ours.path("server-key"), "--tls-client-ca", ours.path("ca"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text, err := os.ReadFile(ours.path("ca"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ls := func(ca string) (string, int) {
		_, errs, code := runBinary(t, nil, "ls", "--server", url, "--ca", ca, "--cert", ours.path("client"), "--key", ours.path("client-key"))
		return errs, code
	}
	for _, name := range []string{"server", "server-key", "ca"} {
		before := strings.Count(s.Log(), "it is a FIFO")
		back := replaceByFIFO(t, ours.path(name))
		e2etest.Eventually(t, name+": the log says so", func() bool {
			_, code := ls(ca)
			return code == 0 && strings.Count(s.Log(), "it is a FIFO") > before
		})
		back()
	}
	broken := append(append([]byte{}, text...), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"...)
	if err := os.WriteFile(ours.path("ca"), broken, 0o600); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "the log says so", func() bool {
		_, code := ls(ca)
		return code == 0 && strings.Contains(s.Log(), "malformed PEM certificate")
	})
	if errs, code := ls(ours.path("ca")); code == 0 || !strings.Contains(errs, "malformed PEM certificate") {
		t.Errorf("the client takes it: exit %d: %s", code, errs)
	}
}

// TestServerFilesStayOutsideDataFolders: a token file and an audit log in a data folder are refused
// by name: in the server's own, which need not exist yet, and in that of another server.
func TestServerFilesStayOutsideDataFolders(t *testing.T) {
	t.Parallel()
	other, _ := stoppedFolder(t, "true")
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

// TestLeftoversOfKilledRunAreRemoved: the temporary folder of a killed `caravan run` stays as long
// as its tasks run. Then the next `caravan run` removes it. The folder of a living one stays.
func TestLeftoversOfKilledRunAreRemoved(t *testing.T) {
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
		t.Errorf("%d folders exist next to a living command, want its own", n)
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
	for _, path := range left() { // otherwise it ends after a minute
		if err := testenv.EndWorkers(filepath.Join(path, "data"), e2etest.Patience); err != nil {
			t.Fatal(err)
		}
	}
	next("last")
	if paths := left(); len(paths) != 0 {
		t.Errorf("left behind: %q", paths)
	}
}
