package messages

import (
	"errors"
	"time"
)

// AttemptKey names one attempt of one task; attempts count from 1.
type AttemptKey struct {
	Run     RunID
	Task    uint32
	Attempt uint32
}

// LiveAttempt is an attempt that has started and not ended.
type LiveAttempt struct {
	Task    uint32
	Attempt uint32
	Start   int64 // ns since the epoch
}

// AttemptResult says how an attempt ended. The order is part of the storage format.
type AttemptResult uint8

// Results of an attempt.
const (
	AttemptSucceeded  AttemptResult = iota // rc 0
	AttemptFailed                          // rc != 0
	AttemptSignaled                        // ended by a signal
	AttemptTimedOut                        // ended by its timeout
	AttemptNotStarted                      // could not be started
	AttemptLost                            // lost to the infrastructure
	AttemptKilled                          // ended by a user's kill
	AttemptRejected                        // a generator's output was refused
)

// AttemptRecord is everything that is kept of an ended attempt.
type AttemptRecord struct {
	Task        uint32
	Attempt     uint32
	Result      AttemptResult
	RC          int32  // exit code; 128 + signal; -1 when it never started
	Start       int64  // ns since the epoch; 0 when it never started
	Stop        int64  // ns since the epoch
	ExecutorLog string // the engine's own words on the attempt
	Node        string
	MaxRSSKB    int64
	UserCPU     time.Duration
	SystemCPU   time.Duration
	Stdout      Output
	Stderr      Output
	Copy        *OutputCopy // of the output that is in files; nil = Node alone has it
}

// OutputCopy is where another node of a cluster has a copy of an attempt's output.
type OutputCopy struct {
	Node           string
	Stdout, Stderr int64 // Output.Offset in the file of that node; 0 for a stream that is not in a file
}

// At returns the output of a stream as it is in the files of the copy.
func (c *OutputCopy) At(out Output, stream Stream) Output {
	out.Offset = c.Stdout
	if stream == Stderr {
		out.Offset = c.Stderr
	}
	return out
}

// Output is what an attempt wrote to one stream, as it is kept: the first and
// the last bytes when it was longer than the limit. Short output is Inline,
// longer output lies in the run's output file.
type Output struct {
	Size   int64  // bytes that the task wrote
	Head   int64  // kept bytes from the beginning; Size when nothing was cut
	Tail   int64  // kept bytes from the end; 0 when nothing was cut
	Inline []byte // Head+Tail bytes, when they are few; else nil
	Offset int64  // where the section with the Head+Tail bytes begins in the run's output file
}

// Stream is one of the two output streams of an attempt.
type Stream uint8

// The streams.
const (
	Stdout Stream = iota
	Stderr
)

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
