package commitlog

import "fmt"

// DamageError says that a file of the log is not what was written.
type DamageError struct {
	File   string
	Offset int64 // where the damage begins, in bytes
	What   string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("commit log: %s: damaged at offset %d: %s", e.File, e.Offset, e.What)
}

func damaged(file string, offset int64, format string, args ...any) error {
	return &DamageError{File: file, Offset: offset, What: fmt.Sprintf(format, args...)}
}
