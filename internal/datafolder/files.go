package datafolder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// readIdentity reads both identity files into f.identity. found is false if there is none. A
// damaged or outdated file is ignored if the other one is valid.
func (f *Folder) readIdentity() (found bool, _ error) {
	var errs []error
	var behind bool
	for n, name := range []string{identityName, copyName} {
		text, err := f.readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			behind = true
			continue
		}
		var i identity
		if err == nil {
			i, err = parseIdentity(text)
		}
		switch {
		case err != nil && !errors.Is(err, errDamaged):
			return false, fmt.Errorf("%s: %w", name, err)
		case err != nil:
			behind = true
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		case found && i.revision == f.own.revision && i != f.own:
			return false, fmt.Errorf("%s and %s belong to different folders; remove the wrong one", identityName, copyName)
		default:
			behind = behind || n > 0 && found && i.revision != f.own.revision
			if i.revision > f.own.revision {
				f.own = i
			}
			found = true
		}
	}
	if !found && len(errs) > 0 {
		return false, fmt.Errorf("%w: put one of the two files back, or restore a backup into a new folder", errors.Join(errs...))
	}
	if len(errs) > 0 {
		f.log.Warn("an identity file is damaged; the other one is used", "data", f.path, "err", errs[0])
	}
	f.stale = found && behind
	return found, nil
}

func (f *Folder) readFile(name string) ([]byte, error) {
	file, err := f.fs.OpenFile(f.in(name), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.NewSectionReader(file, 0, maxIdentity+1))
}

// writeIdentity stores next in both files.
func (f *Folder) write(next identity) error {
	next.revision++
	text := next.encode()
	for _, name := range []string{identityName, copyName} {
		if err := f.replace(name, text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	f.own, f.stale = next, false
	return nil
}

// replaceFile writes a file atomically: it has either the old or the new content.
func (f *Folder) replace(name string, text []byte) error {
	temporary := f.in(name + newSuffix)
	file, err := f.fs.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(text, 0)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := f.fs.Rename(temporary, f.in(name)); err != nil {
		return err
	}
	return f.fs.SyncDir(f.path)
}
