package messages

import "io"

// Document is the JSON of a spec that is too long to be held in memory. It may be
// opened several times, by several goroutines; each reader is for one of them.
type Document interface {
	// Size is its length in bytes.
	Size() int64
	// Open returns a reader of the whole, or an error once the document is closed. It does
	// no I/O.
	Open() (io.ReadCloser, error)
}
