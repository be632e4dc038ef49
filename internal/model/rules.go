package model

// Rule is a rule of the protocol that can be switched off.
type Rule uint8

// Rules of the log and of engines come first, then those of sessions, of dead workers, of leases.
const (
	// FenceByTerm: the rows of an entry are written only if its epoch is the term of the log entry.
	FenceByTerm Rule = iota
	// TakeoverReadsAll: an engine begins with all rows that were committed before its takeover.
	TakeoverReadsAll
	// ResolveBeforeRestart: a second engine of the same term begins only when the last proposal of the
	// first is resolved.
	ResolveBeforeRestart
	// CommitBeforeOrder: an order is sent only when its grant is committed.
	CommitBeforeOrder
	// UnknownEndsEngine: an engine does no more about a task when the outcome of its proposal about that
	// task is unknown.
	UnknownEndsEngine
	// AcknowledgeAfterCommit: an end is acknowledged only when it is committed.
	AcknowledgeAfterCommit

	// HighestEpoch: a worker ignores orders of an epoch below the highest that it has seen.
	HighestEpoch
	// NoteIsDurable: the highest epoch survives the worker's process and a power failure.
	NoteIsDurable
	// NewestSession: a worker ignores orders of a former session of the same epoch.
	NewestSession
	// StartOnce: a worker never starts an attempt that it has started before.
	StartOnce
	// RegisterWorkers: a leader commits a worker to the rows of its partition before it opens a
	// session with it, and a new leader takes its list of workers from these rows.
	RegisterWorkers
	// RegisterIncarnations: that is done again for each process of a worker.
	RegisterIncarnations
	// ResumeHearsAll: an attempt of a former epoch is ordered again only when all registered workers
	// have said that they do not know it.
	ResumeHearsAll
	// AbsenceFromFirstReport: only the first report of a session proves that a worker does not know an
	// attempt.
	AbsenceFromFirstReport
	// SilentIsLost: an attempt that a silent worker may have is lost, and its number is used up.
	SilentIsLost
	// SilenceEndsSession: a leader ends its session with a silent worker before it proposes the loss of
	// an attempt there. A new session refuses the orders of the old one.
	SilenceEndsSession

	// IntentBeforeFork: the intent is in the worker's journal before the process is forked.
	IntentBeforeFork
	// RecoverDeadWorkers: the successor of a dead worker on the same machine speaks for it.
	RecoverDeadWorkers
	// EndProcessesFirst: the successor speaks only when the processes of the dead worker have ended.
	EndProcessesFirst
	// TornJournalProvesNothing: after a power failure the journal does not prove that an attempt has
	// not begun.
	TornJournalProvesNothing
	// OperatorDeclaresDeath: the operator can say that a worker is dead.
	OperatorDeclaresDeath

	// LeaseEndsAttempts: a worker whose lease is over ends its attempts.
	LeaseEndsAttempts
	// LeaseNeedsNoWorker: the lease is enforced also while the worker's process is dead or stopped.
	LeaseNeedsNoWorker
	// BeginUnderLease: a worker begins an attempt only under a lease that is not over.
	BeginUnderLease
	// OverIsOver: a lease that is over is renewed only when the orders and attempts under it have ended.
	OverIsOver
	// LeaseFromSending: a renewal counts from the moment when the worker has sent the heartbeat that it
	// answers.
	LeaseFromSending
	// RenewWhileLeading: a node renews only after a check, begun when the heartbeat had arrived, that
	// it still leads.
	RenewWhileLeading
	// FullWaitAtTakeover: a new leader waits a full lease and its margin before a worker that it has not
	// heard is silent.
	FullWaitAtTakeover
	// MarginCoversGrace: the margin that the leader adds to the lease exceeds the drift of the clocks
	// and the grace of ended attempts together.
	MarginCoversGrace

	ruleCount
)

// ruleNames are the names of the rules, as tests print them.
var ruleNames = [ruleCount]string{
	"FenceByTerm", "TakeoverReadsAll", "ResolveBeforeRestart", "CommitBeforeOrder", "UnknownEndsEngine", "AcknowledgeAfterCommit",
	"HighestEpoch", "NoteIsDurable", "NewestSession", "StartOnce", "RegisterWorkers", "RegisterIncarnations",
	"ResumeHearsAll", "AbsenceFromFirstReport", "SilentIsLost", "SilenceEndsSession",
	"IntentBeforeFork", "RecoverDeadWorkers", "EndProcessesFirst", "TornJournalProvesNothing", "OperatorDeclaresDeath",
	"LeaseEndsAttempts", "LeaseNeedsNoWorker", "BeginUnderLease", "OverIsOver", "LeaseFromSending", "RenewWhileLeading",
	"FullWaitAtTakeover", "MarginCoversGrace",
}

// String returns the rule's name.
func (r Rule) String() string { return ruleNames[r] }

// Rules is a set of rules.
type Rules uint32

// AllRules is the protocol.
const AllRules Rules = 1<<ruleCount - 1

// Without returns the set without some rules.
func (s Rules) Without(rules ...Rule) Rules {
	for _, r := range rules {
		s &^= 1 << r
	}
	return s
}

// Has reports whether the set has a rule.
func (s Rules) Has(r Rule) bool { return s&(1<<r) != 0 }

// Property is what the model checks of every state.
type Property uint8

// Properties. The last three are checked by the step that would break them.
const (
	PropertyNone Property = iota
	// OneCopy: the processes of two attempts of the task, or of one attempt twice, never live at once.
	OneCopy
	// OneStart: an attempt is never started twice.
	OneStart
	// KeptEnd: an end that a worker was allowed to forget is durable.
	KeptEnd
	// DurableGrant: an attempt starts only when its grant is durable.
	DurableGrant
	// NoRerun: an attempt does not start when the end of the task is durable.
	NoRerun
	// FinalEnd: the durable end of a task does not change.
	FinalEnd
)

// String returns a sentence that says how the property is violated.
func (p Property) String() string {
	return [...]string{
		"", "two processes of the task live at once", "an attempt was started twice",
		"an acknowledged end is not durable", "an attempt started without a durable grant",
		"an attempt started although the end of the task is durable", "the durable end of the task was overwritten",
	}[p]
}
