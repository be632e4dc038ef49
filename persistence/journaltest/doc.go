// Package journaltest holds what tests of a persistence.Store, and tests that need a Store, share:
//
//	Run       one conformance suite for every implementation (suite*.go)
//	Memory    a Store in memory that a test can hold back, fail and crash (memory.go)
//	Failing   a Store around another that fails at the n-th call (failing.go)
//
// # The suite on another implementation
//
// A test of the implementation calls Run with a Backend. Its functions are the only knowledge that
// the suite has of an implementation; all else goes through persistence.Store. TestStoreConforms of
// package persistence and TestMemoryConforms of this package are examples. A RunStore on another
// storage engine than Badger is a Backend, too. The implementation must provide:
//
//   - Open, and Reopen after a Close. Each subtest opens a store of its own.
//   - Crash: the store as kill -9 would leave it. The old store still runs, so one that keeps
//     files opens a copy of its folder; the lock of the old one must not be in the way.
//   - Fail: the next commit gets an error from below, such as a failed sync or a full disk. That
//     needs a seam: RunStore has those of the file system and of the free space.
//   - CrashPoints: the store held in the middle of a commit, and what a crash would leave then. An
//     implementation whose commits go through a vfs.FS holds one of its calls (package
//     internal/faults); see commit_crash_test.go of package persistence. One that can also lose
//     power, on a faults.Disk, names that as further crash points; then the suite holds all of
//     rule 2.
//
// The test has this form; dirOf is the implementation's own way from a store to its folder:
//
//	func TestOtherStoreConforms(t *testing.T) {
//		journaltest.Run(t, journaltest.Backend{
//			Open: func(t testing.TB) persistence.Store { return open(t, t.TempDir()) },
//			Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
//				if err := s.Close(); err != nil {
//					t.Fatal(err)
//				}
//				return open(t, dirOf(s))
//			},
//			Crash: func(t testing.TB, s persistence.Store) persistence.Store {
//				return open(t, copyFolder(t, dirOf(s)))
//			},
//			Fail:        func(t testing.TB, s persistence.Store) { … },
//			CrashPoints: []journaltest.CrashPoint{{Name: "killed before the sync", Open: …}},
//		})
//	}
//
// Open the store with its smallest thresholds, because the suite's sizes are fixed: documents of up
// to 9 MiB, a batch of 8 MiB, 7,000 records of one run. Badger is opened with memtables of 4 MiB, so
// that a document of 700 KiB takes several commits.
//
// # Clauses and tests
//
// The rules are those of package persistence (doc.go), the methods those of persistence.Store:
//
//	rule 1, a batch is whole or absent          crash, crash in a commit, big documents, attempts with
//	                                            output, long documents that fail
//	rule 2, Done(nil) means durable             crash, crash in a commit
//	rule 3, durable and answered in order       order, crash in a commit, big documents
//	rule 4, a failure is final                  failed store
//	rule 5, reads show only what is durable     crash in a commit; whole runs only: concurrency
//	Append: a batch after Close gets ErrClosed  close
//	Load                                        creation, sets, header in parts, journal truncation
//	JournalRecords                              journal records
//	DefinitionIfPristine                        pristine definition
//	Attempts                                    attempts, attempts with output
//	UnfinishedSummaries                         unfinished
//	Summaries, FinishedCount                    summaries, many summaries, finished runs, lists while
//	                                            runs change
//	NextRun: an ID is never used again          creation, unfinished, delete, delete a big run
//	LookUpKey, ExpireKeys, KeptKeyCount         keys, keys that outlive their runs
//	ClockMark                                   clock mark
//	Delete                                      delete, delete a big run
//	Close answers what was appended             close
//	ErrNotFound of each method                  unknown
//
// The guarantees of docs/semantics.md rest on them like this:
//
//	an acknowledged run survives           rules 1, 2 and 4, UnfinishedSummaries
//	a COMPLETED task never runs again      rules 1 to 3: the record of an end is durable before the
//	                                       engine acts on it, with all before it; Load,
//	                                       DefinitionIfPristine
//	the server never starts a task twice   the same for the record of a start
//	the API shows durable state only       rules 2 and 5
//	a task starts after its parents        rule 3
//	every request gets an answer           Done of each batch, also after a failure and at Close
//	a key outlives its run                 LookUpKey, ExpireKeys
//	times of a run never go backwards      ClockMark
//
// These clauses are not held here: the budget of a list (ListPaused), which a store may ignore;
// ErrTooBig, because each implementation has other limits; Damaged, because each has other files.
//
// # How a failure reads
//
// The name of the subtest names clause and moment, and the message names the thing, the value found
// and the value expected:
//
//	TestStoreConforms/crash_in_a_commit/power_lost_before_the_write/commit_2:
//	    4 batches were acknowledged, the first 0 are there
//	TestStoreConforms/journal_truncation: next seq: got 2501, want 2500
//
// A store that does not answer fails the test after 30 s. Subtests do not depend on each other: each
// starts from an empty store.
package journaltest
