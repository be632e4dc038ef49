package outputs

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// Ref is a stream as the record of its attempt describes it. Streams that are empty, or in the
// record itself, refer to no file and are skipped.
type Ref struct {
	ID     ID
	Output messages.Output
}

// Verify reads all bytes that the records of a run refer to in its file, below the output folder
// dir, and calls report with each damage, once for each stream. It opens files read-only. It
// returns an error if it cannot read for another reason than damage.
func Verify(dir string, run messages.RunID, refs iter.Seq[Ref], report func(*DamageError)) error {
	name := runPath(dir, run)
	f, err := vfs.OS{}.OpenFile(name, os.O_RDONLY, 0)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		if !vfs.IsFileError(err) {
			return fmt.Errorf("output of run %d: %w", run, err)
		}
		report(&DamageError{File: name, Offset: -1, ID: ID{Key: messages.AttemptKey{Run: run}}, Reason: fmt.Sprintf("it cannot be read: %v", err)})
		return nil
	}
	if !missing {
		defer f.Close()
	}
	buffers := &sync.Pool{New: func() any { return new(block) }}
	for ref := range refs {
		length := ref.Output.Head + ref.Output.Tail
		if !IsInFile(&ref.Output) {
			continue
		}
		if missing {
			report(&DamageError{File: name, Offset: -1, ID: ref.ID, Reason: "the file is missing"})
			continue
		}
		r := &sectionReader{f: f, id: ref.ID, length: length, offset: ref.Output.Offset, loaded: -1, buffers: buffers}
		err := r.checkHeader()
		if err == nil {
			err = r.Verify(0)
		}
		r.release()
		var damage *DamageError
		switch {
		case errors.As(err, &damage):
			report(damage)
		case vfs.IsFileError(err):
			report(&DamageError{File: name, Offset: -1, ID: ref.ID, Reason: fmt.Sprintf("it cannot be read: %v", err)})
		case err != nil:
			return fmt.Errorf("output of run %d: %w", run, err)
		}
	}
	return nil
}
