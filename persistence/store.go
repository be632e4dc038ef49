package persistence

import (
	"errors"

	"github.com/caravan-dag/caravan/messages"
)

// Batch is one atomic write for one run. Every part is optional.
type Batch struct {
	Run   messages.RunID
	Epoch uint64 // of the shard's owner, for a replicated implementation; those of one node do not look at it

	Create   *Creation                // the submission: commit marker, definition, indexes
	Seq      uint64                   // number of Records within the run: 1, 2, …
	Records  []byte                   // dag.Run.TakeRecords; opaque here
	Attempts []messages.AttemptRecord // ended attempts
	Set      *GeneratedSet            // a generated set
	Snapshot *SnapshotPart
	Summary  *messages.Summary // when the run's state changed; a final state takes the run off the unfinished index, any other puts it there

	// Done is called once, from the committer's goroutine; it must not block.
	Done func(error)
}

// Creation is a new run. Batch.Summary goes with it.
type Creation struct {
	Definition     []byte            // the spec's JSON as submitted
	Long           messages.Document // instead of Definition; opened by Append
	IdempotencyKey string            // "" = none
	BodyHash       [32]byte
}

// GeneratedSet is the N-th (1, 2, …) generated set of a run: the generator's output.
type GeneratedSet struct {
	N         int
	Generator uint32 // task index
	JSON      []byte
}

// SnapshotPart carries some chunks of a rolling snapshot. Chunks overwrite older
// ones. Header, in the last part of a round, makes the journal records with
// Seq < Cut superfluous; they are deleted with it.
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

// Journal takes batches. Append never blocks on I/O; the batch and all it
// refers to belong to the journal until Done.
type Journal interface {
	Append(*Batch)
	// Failed is closed when the store has failed; Err then says why.
	Failed() <-chan struct{}
	Err() error
}

// Reader reads what is durable. Errors wrap ErrNotFound where a run is unknown.
type Reader interface {
	// UnfinishedSummaries returns the summaries of the runs without a final state, by ascending id.
	UnfinishedSummaries() ([]*messages.Summary, error)
	// NextRun is one more than the highest run id that was ever used.
	NextRun() (messages.RunID, error)
	// Load returns all that is needed to go on with a run, or to show it.
	Load(messages.RunID) (*Stored, error)
	// DefinitionIfPristine returns the definition of a run of which nothing has been journaled
	// beyond its submission, and nil when something has, or when it is long. It is cheaper
	// than Load.
	DefinitionIfPristine(messages.RunID) ([]byte, error)
	// Summary returns the stored summary; that of a live run may be older than its actor's.
	Summary(messages.RunID) (*messages.Summary, error)
	// Summaries calls yield in ascending order of ids until it returns false. A run whose
	// summary is damaged is yielded as such where it might be selected. The list ends with a
	// *messages.ListPaused when q's budget is used up. A store need not look at the budget.
	Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error
	// FinishedCount is how many finished runs there are. known is false while a store that was
	// opened a moment ago has not counted them.
	FinishedCount() (n int, known bool)
	// JournalRecords returns the journal records of a run behind the one that is numbered after, in
	// order, and the number of the first one: a later one when those before it lie in a
	// snapshot. It reads nothing else of the run.
	JournalRecords(run messages.RunID, after uint64) (records [][]byte, first uint64, err error)
	// Attempts calls yield for the ended attempts of the tasks [first, first+n),
	// ordered by task and attempt. It holds few of them in memory at a time.
	Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error
	// LookUpKey looks an idempotency key up. The run may have been deleted.
	LookUpKey(key string) (run messages.RunID, bodyHash [32]byte, ok bool, err error)
}

// Stored is a run as loaded.
type Stored struct {
	Summary    *messages.Summary
	Definition []byte
	Long       messages.Document // instead of Definition, when that is long
	Sets       []GeneratedSet    // in order of N
	Header     []byte            // snapshot header, nil when there is none
	Chunks     []Chunk           // ascending
	Records    [][]byte          // journal records after the snapshot's cut, in order
	NextSeq    uint64            // the Seq for the next Batch
}

// Store is the whole seam.
type Store interface {
	Journal
	Reader
	// Delete removes finished runs, in small batches of tombstones; ids stay used. Their
	// idempotency keys stay until keysUntil (ns, on the caller's clock): Key answers with
	// the deleted run. 0 removes them with their runs.
	Delete(runs []messages.RunID, keysUntil int64) error
	// ExpireKeys removes up to limit keys of deleted runs, the oldest first: those whose
	// keysUntil is not after now, and those beyond the newest most. It returns how many.
	ExpireKeys(now int64, most, limit int) (int, error)
	// KeptKeyCount is how many keys of deleted runs are kept.
	KeptKeyCount() int
	// ClockMark returns the mark that was set last; ok is false when none was.
	ClockMark() (m ClockMark, ok bool, err error)
	// SetClockMark keeps a mark and returns when it is durable.
	SetClockMark(ClockMark) error
	// CheckDiskSpace tells whether new work may be taken: nil, or why not (low disk).
	CheckDiskSpace() error
	Close() error
}

// Errors of the seam.
var (
	ErrNotFound = errors.New("not found")
	ErrFailed   = errors.New("storage failed")
	ErrTooBig   = errors.New("batch is too big for one transaction")
	ErrClosed   = errors.New("storage is closed")
	ErrDamaged  = errors.New("stored value is corrupt") // it is not what was written
)

// nextSeq is the number of the journal record behind a batch.
func (b *Batch) nextSeq() uint64 {
	if len(b.Records) > 0 {
		return b.Seq + 1
	}
	return b.Seq
}

// ClockMark is where a server's own clock was, for the server that comes after it. The
// store only keeps it.
type ClockMark struct {
	Steady int64  // ns, on the server's own clock, which nobody can set
	Wall   int64  // ns since the epoch: the wall clock at that moment
	Boot   int64  // ns since the machine was started
	BootID string // which start of the machine that was; "" = not known
	Owed   bool   // Steady still lacks what passed up to Wall while the machine was off
}
