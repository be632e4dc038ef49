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
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// registryFile is the name of the registry in DATA/worker.
const registryFile = "workers"

// registry is what a server knows of the workers before it looks at their folders: which workers must
// exist, and the runs that may have attempts which began and are not in a journal (runDoubts). If a
// folder that the registry names is missing, somebody else removed it and its journal.
//
// The file holds a line of JSON and a line with its CRC-32C:
//
//	{"boot":"3c1c…","folder":"7QH2…","workers":[{"name":"w-5e0f3c9a71d2","pid":4711,"ticks":123456}],…}
//	crc32c 8c4e1f02
//
// It is replaced as a whole by a rename, and not synced: it tells of processes, and a restart of the
// machine ends these. A damaged or missing file is replaced by a new one
// that has all runs in doubt: an earlier attempt that workers do not know is lost then, and never
// started a second time.
type registry struct {
	fs   vfs.FS
	path string
	mu   sync.Mutex // over changes of Workers and the doubts, and of the file

	whole bool // it was read, and names all workers that did not remove their folders

	Boot     string           `json:"boot"`   // the kernel's boot ID
	Folder   string           `json:"folder"` // identity of the data folder
	Workers  []registryWorker `json:"workers"`
	DoubtAll bool             `json:"doubtAll"` // runDoubts.all
	Doubts   []messages.RunID `json:"doubts"`
}

// registryWorker is a worker whose folder was made and not removed.
type registryWorker struct {
	Name            string `json:"name"`
	procfs.Identity        // of its process; zero before the start, or when it is not known
}

// openRegistry reads the registry of a folder, or begins a new one. dataFolderID "" = the registry's
// own. fault says what is wrong with the file; "" when it is intact, or was written before the machine
// was started.
func openRegistry(files vfs.FS, dir, dataFolderID string) (g *registry, fault string, _ error) {
	boot, err := procfs.BootID()
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
		} else if dataFolderID != "" && g.Folder != dataFolderID {
			fault = "it belongs to another data folder"
			g.Workers = nil // of the other data folder
		} else if g.Boot == boot {
			g.whole = true
			return g, "", nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	default:
		if left, _ := worker.ListFolders(dir); len(left) > 0 {
			fault = "it is missing"
		}
	}
	g.Boot = boot
	if dataFolderID != "" {
		g.Folder = dataFolderID
	} else if g.Folder == "" {
		g.Folder = rand.Text()
	}
	return g, fault, g.setDoubts(true, nil)
}

// parse reads the text of the file. The error is a sentence without the file's name.
func (g *registry) parse(text []byte) error {
	body, sum, ok := bytes.Cut(text, []byte("\n"))
	if !ok {
		return fmt.Errorf("the checksum line is missing after %d bytes", len(text))
	}
	if want := checksumLine(body); string(sum) != want {
		return fmt.Errorf("the checksum of its %d bytes does not match", len(body))
	}
	return json.Unmarshal(body, g)
}

// checksumLine returns the second line of the file.
func checksumLine(body []byte) string {
	return fmt.Sprintf("crc32c %08x\n", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// setDoubts stores which runs are in doubt. After an error the new set is in memory, and the next change of
// the registry writes it.
func (g *registry) setDoubts(all bool, runs []messages.RunID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.DoubtAll, g.Doubts = all, runs
	return g.write()
}

// write replaces the file. After an error the old file stays, and the next change writes all again. g.mu
// is held.
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

// read returns the text of the file.
func (g *registry) read() ([]byte, error) {
	f, err := g.fs.OpenFile(g.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, math.MaxInt64))
}

// setWorker enters a worker, or replaces its entry.
func (g *registry) setWorker(name string, id procfs.Identity) error {
	return g.replaceWorker(name, registryWorker{Name: name, Identity: id})
}

// removeWorker removes a worker's entry.
func (g *registry) removeWorker(name string) error { return g.replaceWorker(name) }

// replaceWorker stores the entry in place of the one of that name, or none. After an error Workers is
// what it was.
func (g *registry) replaceWorker(name string, entry ...registryWorker) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	former := g.Workers
	others := slices.DeleteFunc(slices.Clone(former), func(w registryWorker) bool { return w.Name == name })
	g.Workers = append(others, entry...)
	err := g.write()
	if err != nil {
		g.Workers = former
	}
	return err
}

// CheckFolder reads the registry and the journal of each worker, without any change, and returns what
// is damaged or missing, each error with the file's name. Workers may live. Files of a former start of
// the machine are not checked: the journals are not synced, and all attempts that ran then are lost
// anyway.
func CheckFolder(dir string) (found []error) {
	path := filepath.Join(dir, registryFile)
	g := &registry{}
	text, err := vfs.ReadFile(path)
	if err == nil {
		err = g.parse(text)
	}
	folders, listErr := worker.ListFolders(dir)
	if listErr != nil {
		found = append(found, listErr)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(folders) == 0:
		return found // no worker was ever started
	case errors.Is(err, fs.ErrNotExist):
		err = &RegistryError{path, "it is missing, and there is the worker folder " + filepath.Base(folders[0])}
	case err != nil:
		err = &RegistryError{path, err.Error()}
	}
	if err != nil {
		found = append(found, err)
		*g = registry{} // it is not trusted
	}
	if boot, err := procfs.BootID(); err != nil || g.Boot != "" && g.Boot != boot {
		return found
	}
	started := map[string]bool{} // a worker that was not started may lack its journal
	for _, w := range g.Workers {
		path := filepath.Join(dir, w.Name)
		started[path] = w.PID != 0
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			found = append(found, &RegistryError{path, "the worker folder is missing, though the registry names it"})
		}
	}
	for _, path := range folders {
		err := worker.CheckJournal(path)
		damage, damaged := errors.AsType[*worker.JournalError](err)
		if err == nil || errors.Is(err, fs.ErrNotExist) || damaged && damage.Missing && !started[path] {
			continue
		}
		found = append(found, err)
	}
	return found
}

// RegistryError says that the registry of workers, or a folder that it names, is damaged or
// missing.
type RegistryError struct {
	File  string
	Fault string
}

// Error implements error.
func (e *RegistryError) Error() string {
	return fmt.Sprintf("registry of workers: %s: %s", e.File, e.Fault)
}
