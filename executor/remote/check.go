package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// Check reads what a data folder knows of its workers, the registry and the journal of each
// worker, and returns what is damaged or missing, each error with the file's name. It
// changes nothing; workers may live. Of a former start of the machine nothing is checked:
// the journals are not synced, and everything that was under way then is lost anyway.
func Check(dir string) (found []error) {
	path := filepath.Join(dir, registryFile)
	g := &registry{}
	text, err := vfs.ReadFile(path)
	if err == nil {
		err = g.parse(text)
	}
	folders, listErr := worker.List(dir)
	if listErr != nil {
		found = append(found, listErr)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(folders) == 0:
		return found // no worker was ever started
	case errors.Is(err, fs.ErrNotExist):
		err = &RegistryError{path, "it is missing beside " + filepath.Base(folders[0])}
	case err != nil:
		err = &RegistryError{path, err.Error()}
	}
	if err != nil {
		found = append(found, err)
		*g = registry{} // what it says counts for nothing
	}
	if boot, err := worker.BootID(); err != nil || g.Boot != "" && g.Boot != boot {
		return found
	}
	started := map[string]bool{} // one that is not may have no journal yet
	for _, w := range g.Workers {
		path := filepath.Join(dir, w.Name)
		started[path] = w.PID != 0
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			found = append(found, &RegistryError{path, "the worker's folder is missing, and the registry has it"})
		}
	}
	for _, path := range folders {
		err := worker.CheckJournal(path)
		var damage *worker.JournalError
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.As(err, &damage) && damage.Missing && !started[path] {
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

func (e *RegistryError) Error() string {
	return fmt.Sprintf("registry of workers: %s: %s", e.File, e.Fault)
}
