package outputs

import (
	"io"

	"github.com/caravan-dag/caravan/messages"
)

// Store keeps the output files of runs.
type Store struct{ dir string }

// Open opens, or makes, the output folder.
func Open(dir string) (*Store, error) { return &Store{dir: dir}, nil }

// Append writes the parts one after the other to the run's file.
func (s *Store) Append(run messages.RunID, parts ...io.Reader) (offset int64, err error) {
	return 0, io.ErrClosedPipe
}

// Log opens an ended attempt's stream.
func (s *Store) Log(run messages.RunID, out messages.Output) (messages.Log, error) {
	return nil, io.ErrClosedPipe
}

// Remove deletes the run's file.
func (s *Store) Remove(run messages.RunID) error { return nil }

// Close closes what is open.
func (s *Store) Close() error { return nil }
