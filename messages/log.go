package messages

import "errors"

// Log reads one output stream of an attempt, by the stream's own offsets, while
// it grows or after it ended. It is for one reader at a time.
type Log interface {
	// ReadAt is as in io.ReaderAt; io.EOF at the present end; ErrCut when off is
	// among bytes that are not kept (go on at Kept(off)). It reads up to the next cut.
	ReadAt(p []byte, off int64) (int, error)
	// Size is the number of bytes that the attempt has written so far.
	Size() int64
	// Kept returns the smallest offset >= off that is kept, at most Size.
	Kept(off int64) int64
	// Live tells whether the attempt still runs. Once it is false, Size is final.
	Live() bool
	Close() error
}

// ErrCut: the bytes at this offset are not kept.
var ErrCut = errors.New("output was cut here")
