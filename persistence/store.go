package persistence

import (
	"errors"

	"github.com/caravan-dag/caravan/messages"
)

// Batch is one atomic write for one run. Every part is optional.
type Batch struct {
	Run messages.RunID

	Create   *Creation                // the submission: definition and idempotency key
	Seq      uint64                   // number of Records within the run: 1, 2, …
	Records  []byte                   // dag.Run.TakeRecords; opaque here
	Attempts []messages.AttemptRecord // ended attempts
	Set      *GeneratedSet            // a generated set
	Snapshot *SnapshotPart
	Summary  *messages.Summary // when the run's state changed. A final state removes the run from the index of unfinished runs, any other state adds it

	// Done is called once, and may be nil. It must not block: all calls are made on one goroutine,
	// in the order of Append (rule 3). Only a batch that comes after Close gets its ErrClosed
	// elsewhere: within Append, or on the goroutine that wrote its long document.
	Done func(error)
}

// Creation is a new run. Batch.Summary comes with it.
type Creation struct {
	Definition     []byte                // the spec's JSON as submitted
	Long           messages.LongDocument // instead of Definition; opened by Append
	IdempotencyKey string                // "" = none
	BodyHash       [32]byte
}

// GeneratedSet is the N-th (1, 2, …) set of tasks that generators of a run have printed.
type GeneratedSet struct {
	N         int
	Generator uint32 // task index
	JSON      []byte
}

// SnapshotPart carries some chunks of a rolling snapshot. Chunks overwrite older ones. The last
// part of a round has the Header, which makes the journal records with Seq < Cut superfluous. They
// are deleted once it is durable.
type SnapshotPart struct {
	Chunks []Chunk
	Header []byte
	Cut    uint64
}

// Chunk is the state of 1,024 tasks, opaque here.
type Chunk struct {
	Index uint32
	Data  []byte
}

// Journal accepts batches. Append never blocks on I/O. The batch, and all that it refers to, belong
// to the journal until Done.
type Journal interface {
	Append(*Batch)
	// Failed is closed when the store has failed; then Err says why.
	Failed() <-chan struct{}
	Err() error
}

// Reader reads what is durable. Errors wrap ErrNotFound where a run is unknown.
//
// A read waits for the disk in two cases, until what was appended before is durable: the run is just
// being created, or a large batch is being written of which a read would see a part. So no read may
// be called on the goroutine that calls Done.
type Reader interface {
	// UnfinishedSummaries returns the summaries of the runs without a final state, by ascending ID.
	UnfinishedSummaries() ([]*messages.Summary, error)
	// NextRun returns one more than the highest run ID that was ever used.
	NextRun() (messages.RunID, error)
	// Load returns all that is needed to continue a run, or to show it.
	Load(messages.RunID) (*Stored, error)
	// DefinitionIfPristine returns the definition of a run that has journaled only its submission.
	// It returns nil for any other run, and for a long definition. It is cheaper than Load.
	DefinitionIfPristine(messages.RunID) ([]byte, error)
	// Summary returns the stored summary. The actor of an unfinished run may have a newer one.
	Summary(messages.RunID) (*messages.Summary, error)
	// Summaries calls yield by ascending run ID until it returns false. A run whose summary is
	// damaged is yielded, with its damage, where it might match. The list ends with a
	// *messages.ListPaused when q's budget is used up. A store may ignore the budget.
	Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error
	// FinishedCount returns how many finished runs there are. known is false while a store that was
	// just opened has not counted them.
	FinishedCount() (n int, known bool)
	// JournalRecords returns the journal records of a run that follow the one numbered after, in
	// order, and the number of the first one. That is a later one when a snapshot has replaced
	// those before it. It reads only these rows of the run.
	JournalRecords(run messages.RunID, after uint64) (records [][]byte, first uint64, err error)
	// Attempts calls yield for the ended attempts of the tasks [first, first+n), ordered by task
	// and attempt. It holds few of them in memory at a time.
	Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error
	// LookUpKey looks up an idempotency key. Its run may have been deleted. A store over rows that were
	// parted has keys whose runs are of other partitions: see ErrForeignKey.
	LookUpKey(key string) (run messages.RunID, bodyHash [32]byte, ok bool, err error)
}

// Stored is a run as loaded.
type Stored struct {
	Summary    *messages.Summary
	Definition []byte
	Long       messages.LongDocument // instead of Definition, when the document is long
	Sets       []GeneratedSet        // in order of N
	Header     []byte                // snapshot header; nil without a snapshot
	Chunks     []Chunk               // ascending
	Records    [][]byte              // journal records from the snapshot's cut on, in order
	NextSeq    uint64                // the Seq for the next Batch
}

// Store is the whole seam.
type Store interface {
	Journal
	Reader
	// Delete removes finished runs, in small batches of tombstones; their IDs stay used. Their
	// idempotency keys stay until keysUntil (ns, on the caller's clock): LookUpKey answers with the
	// deleted run. 0 removes the keys with their runs.
	Delete(runs []messages.RunID, keysUntil int64) error
	// ExpireKeys removes up to limit keys of deleted runs, the oldest first: keys whose keysUntil
	// is not after now, and keys beyond the newest most. It returns how many it removed.
	ExpireKeys(now int64, most, limit int) (int, error)
	// KeptKeyCount returns how many keys of deleted runs are kept.
	KeptKeyCount() int
	// ClockMark returns the mark that was set last; ok is false before the first one.
	ClockMark() (m ClockMark, ok bool, err error)
	// SetClockMark stores a mark and returns when it is durable.
	SetClockMark(ClockMark) error
	// CheckDiskSpace returns nil when new work may be accepted, or says why not (low disk).
	CheckDiskSpace() error
	// Damaged returns the first damage of stored data that was found since the store was opened,
	// nil without damage. It never waits for I/O. After damage it does not return to nil: a running
	// server does not repair. A store that cannot detect damage returns nil.
	Damaged() error
	// Close answers what was appended, and ends the store.
	Close() error
}

// Errors of the seam.
var (
	ErrNotFound = errors.New("not found")
	ErrFailed   = errors.New("storage failed")
	ErrTooBig   = errors.New("batch is too big to be stored") // a row or all rows of the batch; nothing of it was written
	ErrClosed   = errors.New("storage is closed")
	ErrDamaged  = errors.New("stored value is corrupt") // the value is not what was written

	// ErrForeignKey is of a key whose run is of another partition: only that one knows whether the run
	// exists. Keys of runs that were deleted before the rows were parted do not have it, and expire here.
	ErrForeignKey = errors.New("the run of the idempotency key is of another partition")

	// ErrOutcomeUnknown is of a batch that the next store over the same rows may find, or not: the
	// leadership was lost while the batch was being committed. The error wraps ErrLost, too. An error of
	// a batch that wraps ErrLost alone says that the batch is not stored and never will be.
	ErrOutcomeUnknown = errors.New("it is not known whether the batch is stored")
)

// nextSeq returns the number of the journal record that follows the batch.
func (b *Batch) nextSeq() uint64 {
	if len(b.Records) > 0 {
		return b.Seq + 1
	}
	return b.Seq
}

// ClockMark is where a server's own clock was, for the server that follows it. The store only keeps
// it.
type ClockMark struct {
	Steady int64  // ns, on the server's own clock, which is never set
	Wall   int64  // ns since the epoch: the wall clock at that time
	Boot   int64  // ns since the machine was started
	BootID string // identifies that start of the machine; "" = unknown
	Owed   bool   // Steady still lacks the time up to Wall during which the machine was off
}
