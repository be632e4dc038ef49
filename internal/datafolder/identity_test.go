package datafolder

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

func sample() identity {
	return identity{
		revision: 7, id: ID{1, 2, 3}, origin: ID{9}, created: time.Unix(1764400000, 5).UTC(), state: stateUsed,
		paused: "copied\nfrom \"x\"", location: location{inode: 12, birthTime: 99, device: 2049, boot: "b-1"},
	}
}

func TestIdentityRoundTrip(t *testing.T) {
	want := sample()
	got, err := parseIdentity(want.encode())
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	want.paused = strings.Repeat("\xff\n", 5000)
	if got, err = parseIdentity(want.encode()); err != nil || len(got.paused) > maxReason {
		t.Errorf("a long reason: %d bytes, %v", len(got.paused), err)
	}
}

func TestOtherFormatIsRefused(t *testing.T) {
	i := sample()
	text := bytes.Replace(i.encode(), []byte("format 3"), []byte("format 9"), 1)
	if _, err := parseIdentity(text); !errors.Is(err, errDamaged) {
		t.Errorf("without a new checksum: %v", err)
	}
	text = resum(text)
	if _, err := parseIdentity(text); err == nil || errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "format 9") {
		t.Errorf("error %v", err)
	}
}

func FuzzIdentity(f *testing.F) {
	i := sample()
	f.Add(i.encode())
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, text := range [][]byte{text, resum(text)} {
			i, err := parseIdentity(text)
			if err != nil {
				continue
			}
			again, err := parseIdentity(i.encode())
			if err != nil || !again.created.Equal(i.created) || again.id != i.id || again.location != i.location {
				t.Fatalf("%+v is read again as %+v: %v", i, again, err)
			}
		}
	})
}

// resum gives a text the checksum that it should have.
func resum(text []byte) []byte {
	at := bytes.LastIndex(text, []byte("\ncrc32c ")) + 1
	return appendChecksum(bytes.Clone(text[:at]))
}

func TestLocationMatches(t *testing.T) {
	was := location{inode: 2, birthTime: 5, device: 8, boot: "a"}
	for name, c := range map[string]struct {
		now  location
		same bool
	}{
		"as it was":                      {was, true},
		"another inode":                  {location{3, 5, 8, "a"}, false},
		"another birth":                  {location{2, 6, 8, "a"}, false},
		"another device":                 {location{2, 5, 9, "a"}, false},
		"another device after a restart": {location{2, 5, 9, "b"}, true},
		"another birth after a restart":  {location{2, 6, 8, "b"}, false},
		"no birth known":                 {location{2, 0, 8, "a"}, true},
		"no boot known":                  {location{2, 5, 9, ""}, true},
	} {
		if got := was.matches(c.now); got != c.same {
			t.Errorf("%s: same %v, want %v", name, got, c.same)
		}
	}
}

// TestIdentitySurvivesAPowerCut cuts the power at each sync of the identity's writes: afterwards the
// folder is the old one or the new one.
func TestIdentitySurvivesAPowerCut(t *testing.T) {
	for at := 0; ; at++ {
		path := filepath.Join(t.TempDir(), "data")
		f, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(f.DB(), "rows"), nil, 0o600), f.MarkUsed(), f.Close()); err != nil {
			t.Fatal(err)
		}
		disk, err := faults.NewDisk(path)
		if err != nil {
			t.Fatal(err)
		}
		broken := faults.New(disk)
		n, cut := 0, filepath.Join(t.TempDir(), "cut")
		for _, op := range []faults.Op{faults.Sync, faults.SyncDir, faults.Rename} {
			broken.Add(faults.Rule{Op: op, Do: func(faults.Call) {
				if n++; n == at+1 {
					if err := disk.PowerCut(cut, rand.New(rand.NewPCG(1, uint64(at)))); err != nil {
						t.Error(err)
					}
				}
			}})
		}
		f, err = Open(path, Options{FS: broken})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.SetPaused("now"), f.Close()); err != nil {
			t.Fatal(err)
		}
		if n <= at {
			return
		}
		again, err := Open(cut, Options{locate: f.homeAsWas})
		if err != nil {
			t.Fatalf("power cut at step %d: %v", at, err)
		}
		if again.ID() != f.ID() || again.Paused() != "" && again.Paused() != "now" {
			t.Errorf("power cut at step %d: id %v, was %v; paused %q", at, again.ID(), f.ID(), again.Paused())
		}
		again.Close()
	}
}

// homeAsWas is where f is.
func (f *Folder) homeAsWas(*os.File) (location, error) { return f.identity.location, nil }

// TestIdentityWritesAreSynced: what was promised has reached the device.
func TestIdentityWritesAreSynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	f, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk, err := faults.NewDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	f.fs = disk
	if err := f.SetPaused("now"); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	if err := disk.PowerCut(cut, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{identityName, copyName} {
		text, err := os.ReadFile(filepath.Join(cut, name))
		if i, perr := parseIdentity(text); err != nil || perr != nil || i.paused != "now" {
			t.Errorf("%s after a power failure: %+v, %v, %v", name, i, err, perr)
		}
	}
	f.fs = vfs.OS{}
}

// TestFailedDraftLeavesAnEmptyFolder fails each step of a draft's life and repeats the restore.
func TestFailedDraftLeavesAnEmptyFolder(t *testing.T) {
	create := func(path string, fs vfs.FS) (*Draft, error) { return createDraft(path, ID{1}, Options{FS: fs}) }
	for _, rule := range []faults.Rule{
		{Op: faults.Write, Path: "identity.new", N: 1},
		{Op: faults.Sync, Path: "identity.copy.new", N: 1},
		{Op: faults.SyncDir, N: 3},                     // after both identity files are written
		{Op: faults.Write, Path: "identity.new", N: 2}, // in Finish
		{Op: faults.Rename, Path: "identity.copy.new", N: 2},
	} {
		path := filepath.Join(t.TempDir(), "restored")
		broken := faults.New(vfs.OS{})
		broken.Add(rule)
		d, err := create(path, broken)
		if rule.N == 2 && err == nil {
			err = d.Finish("restored")
			if derr := d.Discard(); derr != nil {
				t.Errorf("%+v: %v", rule, derr)
			}
		}
		if !errors.Is(err, faults.ErrInjected) {
			t.Errorf("%+v: error %v", rule, err)
		}
		if list, err := os.ReadDir(path); err != nil || len(list) > 0 {
			t.Errorf("%+v: it holds %v, %v", rule, list, err)
		}
		if d, err = create(path, vfs.OS{}); err != nil {
			t.Errorf("%+v: the next one: %v", rule, err)
			continue
		}
		if err := errors.Join(d.Finish(""), d.Close()); err != nil {
			t.Error(err)
		}
	}
}
