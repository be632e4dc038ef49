package datafolder_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/datafolder"
)

// opened opens a folder, and closes it at the test's end.
func opened(t *testing.T, path string, o datafolder.Options) *datafolder.Folder {
	t.Helper()
	f, err := datafolder.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// used makes a folder as a server leaves it, and returns its path.
func used(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	f := opened(t, path, datafolder.Options{})
	write(t, filepath.Join(f.DB(), "rows"), "1")
	if err := errors.Join(f.MarkUsed(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// copyOf copies a folder as a user does.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", path, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

func TestSameFolderKeepsItsIdentity(t *testing.T) {
	path := used(t)
	f := opened(t, path, datafolder.Options{})
	id := f.ID()
	f.Close()
	moved := filepath.Join(filepath.Dir(path), "moved")
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(moved, link); err != nil {
		t.Fatal(err)
	}
	f = opened(t, link, datafolder.Options{})
	if f.ID() != id || f.IsCopy() || f.Paused() != "" || f.Path() != moved {
		t.Errorf("after mv: id %v, was %v; copied %v, paused %q, path %s", f.ID(), id, f.IsCopy(), f.Paused(), f.Path())
	}
	if _, ok := f.Origin(); ok {
		t.Error("a folder that was made anew has an origin")
	}
}

func TestCopyGetsANewIdentity(t *testing.T) {
	path := used(t)
	if err := os.Mkdir(filepath.Join(path, "worker", "w-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, "slurm"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path, "worker", "w-1", "journal"), "of the original")
	original := opened(t, path, datafolder.Options{})
	other := copyOf(t, path)
	f := opened(t, other, datafolder.Options{}) // beside the original: the lock is not copied
	if !f.IsCopy() || f.ID() == original.ID() || !strings.Contains(f.Paused(), original.ID().String()) {
		t.Errorf("copied %v, id %v, original's %v, paused %q", f.IsCopy(), f.ID(), original.ID(), f.Paused())
	}
	if origin, ok := f.Origin(); !ok || origin != original.ID() {
		t.Errorf("origin %v, %v", origin, ok)
	}
	if list, err := os.ReadDir(f.Worker()); err != nil || len(list) != 0 {
		t.Errorf("the copy's worker folder holds %v, %v", list, err)
	}
	aside := filepath.Join(other, "aside", f.ID().Short())
	if text, err := os.ReadFile(filepath.Join(aside, "worker", "w-1", "journal")); err != nil || string(text) != "of the original" {
		t.Errorf("set aside: %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(aside, "slurm")); err != nil {
		t.Error(err)
	}
	id := f.ID()
	f.Close()
	f = opened(t, other, datafolder.Options{})
	if f.IsCopy() || f.ID() != id || f.Paused() == "" {
		t.Errorf("opened again: copied %v, id %v, was %v, paused %q", f.IsCopy(), f.ID(), id, f.Paused())
	}
	f.Close()
	f = opened(t, other, datafolder.Options{Resume: true})
	if f.Paused() != "" {
		t.Errorf("paused %q although it was resumed", f.Paused())
	}
	if f := opened(t, copyOf(t, path), datafolder.Options{Resume: true}); f.Paused() != "" || !f.IsCopy() {
		t.Errorf("a copy that is resumed at once: copied %v, paused %q", f.IsCopy(), f.Paused())
	}
}

func TestPauseSurvivesReopening(t *testing.T) {
	path := used(t)
	f := opened(t, path, datafolder.Options{Pause: "to look first"})
	f.Close()
	f = opened(t, path, datafolder.Options{})
	if f.Paused() != "to look first" {
		t.Errorf("paused %q", f.Paused())
	}
	if err := f.SetPaused(""); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if f = opened(t, path, datafolder.Options{}); f.Paused() != "" {
		t.Errorf("resumed, and paused %q", f.Paused())
	}
}

func TestLockAllowsOneServer(t *testing.T) {
	path := used(t)
	f := opened(t, path, datafolder.Options{})
	if _, err := datafolder.Open(path, datafolder.Options{}); !errors.Is(err, datafolder.ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := datafolder.Inspect(path); !errors.Is(err, datafolder.ErrInUse) {
		t.Errorf("a look beside a server: %v", err)
	}
	f.Close()
	for range 2 {
		look, err := datafolder.Inspect(path)
		if err != nil || len(look.Problems()) > 0 {
			t.Fatalf("a look: %v, %v", err, look.Problems())
		}
		defer look.Close()
	}
	if _, err := datafolder.Open(path, datafolder.Options{}); !errors.Is(err, datafolder.ErrInUse) {
		t.Errorf("a server beside looks: %v", err)
	}
}

// TestOpenRefusesDamagedOrForeignFolders: what must not be opened, and that the error says why.
func TestOpenRefusesDamagedOrForeignFolders(t *testing.T) {
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mode := func(name string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Chmod(filepath.Join(path, name), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	owner := func(name string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			if err := os.Chown(filepath.Join(path, name), 12345, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	link := func(name string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			at := filepath.Join(path, name)
			if err := errors.Join(os.Rename(at, path+".away"), os.Symlink(path+".away", at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		do   func(*testing.T, string)
		says string
	}{
		"no db":                  {remove("db"), "db/ is missing"},
		"empty db":               {remove("db/rows"), "db/ is empty"},
		"no output":              {remove("output"), "output/ is missing"},
		"no worker":              {remove("worker"), "worker/ is missing"},
		"no identity":            {func(t *testing.T, p string) { remove("identity")(t, p); remove("identity.copy")(t, p) }, "identity is missing"},
		"others may write":       {mode(".", 0o770), "is writable by others"},
		"others may write in it": {mode("output", 0o777), "output is writable by others"},
		"others may write a row": {mode("db/rows", 0o606), "db/rows is writable by others"},
		"another's folder":       {owner("."), "12345"},
		"another's row":          {owner("db/rows"), "db/rows belongs to user 12345"},
		"a link to output":       {link("output"), "output is a symbolic link"},
		"a link in db":           {link("db/rows"), "db/rows is a symbolic link"},
		"a link to the identity": {link("identity"), "identity"},
	} {
		t.Run(name, func(t *testing.T) {
			path := used(t)
			c.do(t, path)
			f, err := datafolder.Open(path, datafolder.Options{})
			if err == nil {
				f.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q: it should name %s and say %q", err, path, c.says)
			}
			look, err := datafolder.Inspect(path)
			if err != nil {
				t.Fatal(err)
			}
			defer look.Close()
			if len(look.Problems()) == 0 {
				t.Error("a look finds nothing wrong")
			}
		})
	}
}

func TestRefusedFolderIsNotChanged(t *testing.T) {
	path := t.TempDir()
	write(t, filepath.Join(path, "thesis.tex"), "")
	if _, err := datafolder.Open(path, datafolder.Options{}); err == nil || !strings.Contains(err.Error(), `"thesis.tex"`) {
		t.Fatalf("error %v", err)
	}
	if _, err := datafolder.CreateDraft(path, datafolder.ID{}); err == nil || !strings.Contains(err.Error(), `"thesis.tex"`) {
		t.Fatalf("error %v", err)
	}
	if list, _ := os.ReadDir(path); len(list) != 1 {
		t.Errorf("it holds %v", list)
	}
	volume := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(volume, "lost+found"), 0o700), os.Chmod(volume, 0o755)); err != nil {
		t.Fatal(err)
	}
	opened(t, volume, datafolder.Options{})
	if info, err := os.Stat(volume); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of a new folder: %v, %v", info.Mode(), err)
	}
}

func TestOpenContinuesAnInterruptedCreation(t *testing.T) {
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, "db"), 0o700); err != nil { // a crash before the identity
		t.Fatal(err)
	}
	f := opened(t, path, datafolder.Options{})
	id := f.ID()
	write(t, filepath.Join(f.DB(), "half"), "a row") // a crash before Begin
	f.Close()
	f = opened(t, path, datafolder.Options{})
	if list, err := os.ReadDir(f.DB()); err != nil || len(list) != 0 || f.ID() != id || f.IsUsed() {
		t.Errorf("db holds %v, %v; id %v, was %v; used %v", list, err, f.ID(), id, f.IsUsed())
	}
}

// TestOneIdentityFileIsEnough: one damaged file is repaired from the other one; two are refused,
// and named.
func TestOneIdentityFileIsEnough(t *testing.T) {
	path := used(t)
	files := []string{filepath.Join(path, "identity"), filepath.Join(path, "identity.copy")}
	good, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		for at := 0; at < len(good); at += 17 {
			bad := slices.Clone(good)
			bad[at] ^= 4
			write(t, name, string(bad))
			f, err := datafolder.Open(path, datafolder.Options{})
			if err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
			f.Close()
			if text, err := os.ReadFile(name); err != nil || string(text) == string(bad) {
				t.Fatalf("byte %d: not repaired: %v", at, err)
			}
		}
	}
	for _, name := range files {
		write(t, name, string(good[:len(good)/2]))
	}
	_, err = datafolder.Open(path, datafolder.Options{})
	if err == nil || !strings.Contains(err.Error(), "identity: damaged") || !strings.Contains(err.Error(), "identity.copy: damaged") {
		t.Errorf("error %v", err)
	}
}

func TestDraftIsValidOnceFinished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "restored")
	d, err := datafolder.CreateDraft(path, datafolder.ID{1})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(d.DB(), "rows"), "1")
	d.Close() // a crash
	if _, err := datafolder.Open(path, datafolder.Options{}); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("a half restored folder: %v", err)
	}
	if _, err := datafolder.CreateDraft(path, datafolder.ID{1}); err == nil {
		t.Error("a half restored folder is overwritten")
	}
	path = filepath.Join(t.TempDir(), "restored")
	if d, err = datafolder.CreateDraft(path, datafolder.ID{1}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(d.DB(), "rows"), "1")
	if err := errors.Join(d.Finish("restored"), d.Close()); err != nil {
		t.Fatal(err)
	}
	f := opened(t, path, datafolder.Options{})
	if origin, _ := f.Origin(); f.Paused() != "restored" || f.IsCopy() || origin != (datafolder.ID{1}) {
		t.Errorf("paused %q, copied %v, origin %v", f.Paused(), f.IsCopy(), origin)
	}
}

// TestUnusualPathsAreAccepted: every path that the kernel takes is a data folder's.
func TestUnusualPathsAreAccepted(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"q[1]", "a b", "new\nline", `quo"te'`, "%41%", "-dash", "b\xffd", "*?\\", strings.Repeat("x", 255)} {
		path := filepath.Join(root, name)
		f := opened(t, path, datafolder.Options{})
		write(t, filepath.Join(f.DB(), "rows"), "1")
		if err := errors.Join(f.MarkUsed(), f.Close()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if f = opened(t, path, datafolder.Options{}); f.IsCopy() {
			t.Errorf("%q: taken for a copy", name)
		}
	}
	t.Chdir(root)
	if f := opened(t, "relative", datafolder.Options{}); f.Path() != filepath.Join(root, "relative") {
		t.Errorf("path %s", f.Path())
	}
}

// TestFolderIsPrivate: modes are the folder's own, whatever the process's umask.
func TestFolderIsPrivate(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := used(t)
	err := filepath.WalkDir(path, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", name, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
