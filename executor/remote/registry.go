package remote

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/executor/worker"
)

// registryFile is the registry's name in DATA/worker.
const registryFile = "workers"

// registry is what a server knows of the workers before it looks at their folders: since
// when every start is in some worker's journal, and which workers there must be. A folder
// that the registry names and that is missing was removed by somebody else, with what its
// journal knew.
//
// The file holds JSON and a line with its CRC-32C. Whatever is wrong with it, the answer is
// a new registry whose memory begins now: an attempt of before that no worker knows
// is lost then, and never started a second time.
type registry struct {
	path string
	mu   sync.Mutex // over changes of Workers and of the file

	Boot    string           `json:"boot"`   // the kernel's boot id
	Folder  string           `json:"folder"` // identity of the data folder
	Since   int64            `json:"since"`  // ns since the epoch: the memory reaches back to here
	Workers []registryWorker `json:"workers"`
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
func openRegistry(dir, folder string) (g *registry, fault string, _ error) {
	boot, err := worker.BootID()
	if err != nil {
		return nil, "", err
	}
	g = &registry{path: filepath.Join(dir, registryFile)}
	text, err := os.ReadFile(g.path)
	switch {
	case err == nil:
		if err := g.parse(text); err != nil {
			fault = err.Error()
			g.Folder, g.Workers = "", nil
		} else if folder != "" && g.Folder != folder {
			fault = "it is that of another data folder"
			g.Workers = nil // they are not this folder's
		} else if g.Boot == boot {
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
	g.forgetPast()
	return g, fault, g.save()
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

// save replaces the file.
func (g *registry) save() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.write()
}

// write is save. g.mu is held.
func (g *registry) write() error {
	body, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.WriteFile(g.path+".new", fmt.Appendf(nil, "%s\n%s", body, checksumLine(body)), 0o600); err != nil {
		return err
	}
	return os.Rename(g.path+".new", g.path)
}

// forgetPast has the memory begin now: something of before is not known.
func (g *registry) forgetPast() { g.Since = time.Now().UnixNano() }

// note enters a worker, or what is known of it by now.
func (g *registry) note(name string, id worker.Identity) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	entry := registryWorker{Name: name, PID: id.PID, Ticks: id.Ticks}
	if i := g.index(name); i >= 0 {
		g.Workers[i] = entry
	} else {
		g.Workers = append(g.Workers, entry)
	}
	return g.write()
}

// strike takes a worker out.
func (g *registry) strike(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := g.index(name)
	if i < 0 {
		return nil
	}
	g.Workers = slices.Delete(g.Workers, i, i+1)
	return g.write()
}

func (g *registry) index(name string) int {
	return slices.IndexFunc(g.Workers, func(w registryWorker) bool { return w.Name == name })
}
