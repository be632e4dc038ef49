package remote

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// registryFile is the registry's name in DATA/worker.
const registryFile = "workers"

// registry is what a server knows of the workers before it looks at their folders: which
// workers there must be, and the runs of which some may have begun attempts that are in no
// journal (doubts). A folder that the registry names and that is missing was removed by
// somebody else, with what its journal knew.
//
// The file holds JSON and a line with its CRC-32C. Whatever is wrong with it, the answer is
// a new registry that has all runs in doubt: an attempt of before that no worker knows
// is lost then, and never started a second time.
type registry struct {
	fs   vfs.FS
	path string
	mu   sync.Mutex // over changes of Workers and the doubts, and of the file

	whole bool // it was read, and names all workers whose folders were not removed in order

	Boot     string           `json:"boot"`   // the kernel's boot id
	Folder   string           `json:"folder"` // identity of the data folder
	Workers  []registryWorker `json:"workers"`
	DoubtAll bool             `json:"doubtAll"` // see doubts
	Doubts   []messages.RunID `json:"doubts"`
}

// registryWorker is a worker whose folder was made and not removed.
type registryWorker struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"` // 0: it is not known whether it was started
	Ticks uint64 `json:"ticks"`
}

func (w *registryWorker) identity() worker.Identity {
	return worker.Identity{PID: w.PID, Ticks: w.Ticks}
}

// openRegistry reads the registry of a folder, or begins a new one. folder is the identity
// of the data folder; "" = that of the registry. fault says what was
// wrong with a file that was there; "" when nothing was, or when it is of another boot.
func openRegistry(files vfs.FS, dir, folder string) (g *registry, fault string, _ error) {
	boot, err := worker.BootID()
	if err != nil {
		return nil, "", err
	}
	g = &registry{fs: files, path: filepath.Join(dir, registryFile)}
	text, err := g.read()
	switch {
	case err == nil:
		if err := g.parse(text); err != nil {
			fault = err.Error()
			g.Folder, g.Workers = "", nil
		} else if folder != "" && g.Folder != folder {
			fault = "it is that of another data folder"
			g.Workers = nil // they are not this folder's
		} else if g.Boot == boot {
			g.whole = true
			return g, "", nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	default:
		if left, _ := worker.List(dir); len(left) > 0 {
			fault = "it is missing"
		}
	}
	g.Boot = boot
	if folder != "" {
		g.Folder = folder
	} else if g.Folder == "" {
		g.Folder = rand.Text()
	}
	return g, fault, g.setDoubts(true, nil)
}

func (g *registry) parse(text []byte) error {
	body, sum, ok := bytes.Cut(text, []byte("\n"))
	if !ok {
		return fmt.Errorf("the line of the checksum is missing after %d bytes", len(text))
	}
	if want := checksumLine(body); string(sum) != want {
		return fmt.Errorf("the checksum of its %d bytes does not hold", len(body))
	}
	return json.Unmarshal(body, g)
}

func checksumLine(body []byte) string {
	return fmt.Sprintf("crc32c %08x\n", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// setDoubts keeps what is in doubt from now on.
func (g *registry) setDoubts(all bool, runs []messages.RunID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.DoubtAll, g.Doubts = all, runs
	return g.write()
}

// write replaces the file. g.mu is held.
func (g *registry) write() error {
	body, err := json.Marshal(g)
	if err != nil {
		return err
	}
	f, err := g.fs.OpenFile(g.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%s\n%s", body, checksumLine(body)), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return g.fs.Rename(g.path+".new", g.path)
}

func (g *registry) read() ([]byte, error) {
	f, err := g.fs.OpenFile(g.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
}

// note enters a worker, or what is known of it by now.
func (g *registry) note(name string, id worker.Identity) error {
	return g.change(func(list []registryWorker, i int) []registryWorker {
		entry := registryWorker{Name: name, PID: id.PID, Ticks: id.Ticks}
		if i < 0 {
			return append(list, entry)
		}
		list[i] = entry
		return list
	}, name)
}

// strike takes a worker out.
func (g *registry) strike(name string) error {
	return g.change(func(list []registryWorker, i int) []registryWorker {
		if i < 0 {
			return list
		}
		return slices.Delete(list, i, i+1)
	}, name)
}

// change changes a copy of Workers, in which the worker of this name is the i-th, or none.
// After an error nothing has changed.
func (g *registry) change(do func(list []registryWorker, i int) []registryWorker, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	former := g.Workers
	g.Workers = do(slices.Clone(former), g.index(name))
	err := g.write()
	if err != nil {
		g.Workers = former
	}
	return err
}

func (g *registry) index(name string) int {
	return slices.IndexFunc(g.Workers, func(w registryWorker) bool { return w.Name == name })
}
