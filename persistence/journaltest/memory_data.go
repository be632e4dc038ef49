package journaltest

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// memData is the durable content of a Memory: plain maps without encoding. The lock of its Memory
// guards it. Values in it are never changed, only replaced: reads return them without a copy, and
// clones share them.
type memData struct {
	runs map[messages.RunID]*memRun
	keys map[string]memKey
	next messages.RunID
	mark *persistence.ClockMark
}

// memKey is an idempotency key. Its until is 0 while its run exists, and then the time in ns up to
// which it is kept, on the caller's clock.
type memKey struct {
	run      messages.RunID
	bodyHash [32]byte
	until    int64
}

// memRun is a run. It exists for reads once it has a summary: a test may append records of a run
// that it never creates (testOrder), and these are not a run.
type memRun struct {
	summary    *messages.Summary
	definition []byte
	key        string // "" = the submission came without one
	bodyHash   [32]byte
	sets       map[int]persistence.GeneratedSet // by N
	header     []byte                           // of the newest snapshot; nil without one
	nextSeq    uint64                           // never falls, so that no record is numbered twice
	chunks     map[uint32][]byte                // by index
	records    map[uint64][]byte                // by Seq, from the snapshot's cut on
	attempts   []messages.AttemptRecord         // in the order of their batches
}

func newMemData() *memData {
	return &memData{runs: map[messages.RunID]*memRun{}, keys: map[string]memKey{}}
}

// clone returns a copy that shares the immutable leaves: documents, records, chunks, summaries. The
// two can then be changed independently, as a store and what a crash has left of it.
func (d *memData) clone() *memData {
	c := &memData{runs: make(map[messages.RunID]*memRun, len(d.runs)), keys: maps.Clone(d.keys), next: d.next, mark: d.mark}
	for id, r := range d.runs {
		n := *r
		n.sets, n.chunks, n.records = maps.Clone(r.sets), maps.Clone(r.chunks), maps.Clone(r.records)
		n.attempts = slices.Clone(r.attempts)
		c.runs[id] = &n
	}
	return c
}

// apply applies a batch: creation, records, attempts, set, snapshot, summary. It copies all of it,
// because the batch belongs to its caller again after Done. A header deletes the records below its
// cut in the same step. Any batch makes its run's ID used, also one without a creation.
func (d *memData) apply(b *persistence.Batch) {
	r := d.runs[b.Run]
	if r == nil { // also for a batch without a creation, as after the deletion of its run
		r = &memRun{nextSeq: 1, sets: map[int]persistence.GeneratedSet{}, chunks: map[uint32][]byte{}, records: map[uint64][]byte{}}
		d.runs[b.Run] = r
	}
	d.next = max(d.next, b.Run+1)
	if c := b.Create; c != nil {
		// A key of a deleted run that has not expired passes to this run: the caller looks keys up first.
		r.definition, r.key, r.bodyHash = bytes.Clone(c.Definition), c.IdempotencyKey, c.BodyHash
		if c.IdempotencyKey != "" {
			d.keys[c.IdempotencyKey] = memKey{run: b.Run, bodyHash: c.BodyHash}
		}
	}
	if len(b.Records) > 0 {
		r.records[b.Seq] = bytes.Clone(b.Records)
		r.nextSeq = max(r.nextSeq, b.Seq+1)
	}
	for i := range b.Attempts {
		r.attempts = append(r.attempts, cloneAttempt(&b.Attempts[i]))
	}
	if s := b.Set; s != nil {
		r.sets[s.N] = persistence.GeneratedSet{N: s.N, Generator: s.Generator, JSON: bytes.Clone(s.JSON)}
	}
	if s := b.Snapshot; s != nil {
		for _, c := range s.Chunks {
			r.chunks[c.Index] = bytes.Clone(c.Data)
		}
		if s.Header != nil { // the last part of a round
			r.header = bytes.Clone(s.Header)
			r.nextSeq = max(r.nextSeq, s.Cut)
			maps.DeleteFunc(r.records, func(seq uint64, _ []byte) bool { return seq < s.Cut })
		}
	}
	if b.Summary != nil {
		s := *b.Summary
		s.Tags = slices.Clone(s.Tags)
		r.summary = &s
	}
}

// cloneAttempt copies an attempt with its inline output.
func cloneAttempt(a *messages.AttemptRecord) messages.AttemptRecord {
	c := *a
	c.Stdout.Inline, c.Stderr.Inline = bytes.Clone(a.Stdout.Inline), bytes.Clone(a.Stderr.Inline)
	return c
}

// remove deletes a run. Its key stays until keysUntil, or goes with it when that is 0. A key that
// another run has taken over is not this run's any more and stays as it is.
func (d *memData) remove(run messages.RunID, keysUntil int64) {
	r := d.runs[run]
	if r == nil {
		return
	}
	if k, ok := d.keys[r.key]; ok && k.run == run && k.until == 0 {
		if k.until = keysUntil; keysUntil > 0 {
			d.keys[r.key] = k
		} else {
			delete(d.keys, r.key)
		}
	}
	delete(d.runs, run)
}

// UnfinishedSummaries returns the summaries of the runs without a final state, by ascending ID.
func (m *Memory) UnfinishedSummaries() ([]*messages.Summary, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkOpen(); err != nil {
		return nil, err
	}
	var runs []*messages.Summary
	for _, r := range m.data.runs {
		if r.summary != nil && !final(r.summary.State) {
			runs = append(runs, r.summary)
		}
	}
	slices.SortFunc(runs, func(a, b *messages.Summary) int { return cmp.Compare(a.ID, b.ID) })
	return runs, nil
}

// final reports whether a run in this state has ended. A restart can still make it QUEUED again.
func final(s dag.RunState) bool {
	return s == dag.RunCompleted || s == dag.RunErrored || s == dag.RunKilled
}

// NextRun returns one more than the highest ID that was ever used.
func (m *Memory) NextRun() (messages.RunID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data.next, m.checkOpen()
}

// run finds a durable run; the caller holds mu. The error wraps ErrNotFound for an unknown run.
func (m *Memory) run(id messages.RunID) (*memRun, error) {
	if err := m.checkOpen(); err != nil {
		return nil, err
	}
	r := m.data.runs[id]
	if r == nil || r.summary == nil {
		return nil, fmt.Errorf("run %d: %w", id, persistence.ErrNotFound)
	}
	return r, nil
}

// DefinitionIfPristine returns the definition of a run that has journaled only its submission: that
// is record 1, so the next one is 2, and a snapshot does not exist.
func (m *Memory) DefinitionIfPristine(id messages.RunID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.run(id)
	if err != nil || r.nextSeq > 2 || r.header != nil {
		return nil, err
	}
	return r.definition, nil
}

// Load returns all of a run.
func (m *Memory) Load(id messages.RunID) (*persistence.Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.run(id)
	if err != nil {
		return nil, err
	}
	st := &persistence.Stored{Summary: r.summary, Definition: r.definition, Header: r.header, NextSeq: r.nextSeq}
	for _, n := range slices.Sorted(maps.Keys(r.sets)) {
		st.Sets = append(st.Sets, r.sets[n])
	}
	for _, i := range slices.Sorted(maps.Keys(r.chunks)) {
		st.Chunks = append(st.Chunks, persistence.Chunk{Index: i, Data: r.chunks[i]})
	}
	for _, seq := range slices.Sorted(maps.Keys(r.records)) {
		st.Records = append(st.Records, r.records[seq])
	}
	return st, nil
}

// Summary returns the stored summary of a run.
func (m *Memory) Summary(id messages.RunID) (*messages.Summary, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.run(id)
	if err != nil {
		return nil, err
	}
	return r.summary, nil
}

// Summaries yields the runs that q selects, by ascending ID. It collects them under the lock and yields
// them without it, so that yield may call the store. It ignores q's budget.
func (m *Memory) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	m.mu.Lock()
	if err := m.checkOpen(); err != nil {
		m.mu.Unlock()
		return err
	}
	// Without All, a list has finished runs only if it asks for one of their states.
	all := q.All || slices.ContainsFunc(q.States, final)
	var found []*messages.Summary
	for id, r := range m.data.runs {
		s := r.summary
		switch { // each case is a reason to leave the run out
		case s == nil, !all && final(s.State), q.HasAfter && id <= q.After, q.HasTag && s.Tag != q.Tag:
		case len(q.States) > 0 && !slices.Contains(q.States, s.State):
		case q.Before > 0 && id >= q.Before:
		case q.ChangedFrom > 0 && s.Changed < q.ChangedFrom, q.ChangedTo > 0 && s.Changed > q.ChangedTo:
		case slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) }):
		default:
			found = append(found, s)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(found, func(a, b *messages.Summary) int { return cmp.Compare(a.ID, b.ID) })
	if q.Limit > 0 && len(found) > q.Limit {
		found = found[:q.Limit]
	}
	for _, s := range found {
		if !yield(s) {
			break
		}
	}
	return nil
}

// FinishedCount returns how many finished runs there are. It counts them, so it always knows.
func (m *Memory) FinishedCount() (n int, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.data.runs {
		if r.summary != nil && final(r.summary.State) {
			n++
		}
	}
	return n, true
}

// JournalRecords returns the journal records of a run that follow the one numbered after. The records
// have no gaps, so the last one's number and their count give the number of the first.
func (m *Memory) JournalRecords(id messages.RunID, after uint64) (records [][]byte, first uint64, err error) {
	st, err := m.Load(id)
	if err != nil {
		return nil, 0, err
	}
	first = st.NextSeq - uint64(len(st.Records))
	if from := after + 1; from > first {
		st.Records = st.Records[min(from-first, uint64(len(st.Records))):]
		first = from
	}
	return st.Records, first, nil
}

// Attempts yields the ended attempts of tasks [first, first+n), by task and attempt. The subtraction in
// its test cannot overflow, where first+n can.
func (m *Memory) Attempts(id messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	m.mu.Lock()
	r, err := m.run(id)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	var found []messages.AttemptRecord
	for _, a := range r.attempts {
		if a.Task >= first && a.Task-first < n {
			found = append(found, a)
		}
	}
	m.mu.Unlock()
	slices.SortStableFunc(found, func(a, b messages.AttemptRecord) int {
		return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Attempt, b.Attempt))
	})
	for i := range found {
		if !yield(&found[i]) {
			break
		}
	}
	return nil
}

// LookUpKey looks up an idempotency key.
func (m *Memory) LookUpKey(key string) (messages.RunID, [32]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkOpen(); err != nil {
		return 0, [32]byte{}, false, err
	}
	k, ok := m.data.keys[key]
	return k.run, k.bodyHash, ok, nil
}

// ExpireKeys removes keys of deleted runs, the oldest first: up to limit of those that are expired, or
// beyond the newest most.
func (m *Memory) ExpireKeys(now int64, most, limit int) (removed int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkOpen(); err != nil {
		return 0, err
	}
	kept := m.data.keysOfDeletedRuns()
	slices.SortFunc(kept, func(a, b string) int { return cmp.Compare(m.data.keys[a].until, m.data.keys[b].until) })
	for i, key := range kept {
		// Keys ascend by time, so neither this one nor a later one is expired or surplus.
		if i == limit || m.data.keys[key].until > now && i >= len(kept)-most {
			break
		}
		delete(m.data.keys, key)
		removed++
	}
	return removed, nil
}

// keysOfDeletedRuns returns the keys of deleted runs, in any order.
func (d *memData) keysOfDeletedRuns() (keys []string) {
	for key, k := range d.keys {
		if k.until > 0 {
			keys = append(keys, key)
		}
	}
	return keys
}

// KeptKeyCount returns how many keys of deleted runs are kept.
func (m *Memory) KeptKeyCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.data.keysOfDeletedRuns())
}

// ClockMark returns the mark that was set last.
func (m *Memory) ClockMark() (persistence.ClockMark, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data.mark == nil {
		return persistence.ClockMark{}, false, m.checkOpen()
	}
	return *m.data.mark, true, m.checkOpen()
}

// SetClockMark stores a mark at once; Hold does not delay it.
func (m *Memory) SetClockMark(mark persistence.ClockMark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkOpen(); err != nil {
		return err
	}
	m.data.mark = &mark
	return nil
}
