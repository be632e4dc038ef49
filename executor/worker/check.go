package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// JournalError says that a journal lacks some of the records that were written to it.
type JournalError struct {
	File    string
	Fault   string // what is wrong, and at which offset
	Missing bool   // so is the file
}

func (e *JournalError) Error() string { return fmt.Sprintf("worker's journal %s: %s", e.File, e.Fault) }

// CheckJournal reads the journal in a worker's folder, as a server does that takes over
// from a dead worker, and changes nothing. The error is a *JournalError when the journal is
// damaged, cut or missing, and wraps fs.ErrNotExist when the folder is missing. The worker
// may live: a journal that changes while it is read is read again.
func CheckJournal(folder string) error {
	path := filepath.Join(folder, journalFileName)
	var before []byte
	for {
		text, err := vfs.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(folder); err != nil {
				return err // a worker that has ended takes it away
			}
			return &JournalError{File: path, Fault: "the file is missing", Missing: true}
		}
		if err != nil {
			return &JournalError{File: path, Fault: err.Error()}
		}
		p := readJournal(text)
		if p.whole {
			return nil
		}
		if before != nil && bytes.Equal(text, before) {
			return &JournalError{File: path, Fault: p.fault}
		}
		before = append(make([]byte, 0, len(text)+1), text...)
	}
}
