package executortest

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// waitLimit is how long a Recorder or a Fake waits without any news before it fails the test. Every
// report or order begins it again, so that a wait for many attempts may take longer than one.
const waitLimit = 2 * testenv.Patience

// Recorder is a Sink that keeps every report. It fails the test as soon as a report breaks the
// rules: a second final report, a report after it, or a second Started.
//
//	allowed for a key                              not allowed
//	Started, Finished                              Started, Started
//	Finished                                       Started, Revoked
//	Revoked, then as a new key (ordered again)     Finished, anything
//
// Also not allowed are a record that names another task or attempt than its key, and a report without a
// time. It fails by Errorf, so the rest of the test still runs, and it may be called from any goroutine.
type Recorder struct {
	t       testing.TB
	mu      sync.Mutex // guards all below
	changed *sync.Cond // of mu; signalled by each report
	reports map[messages.AttemptKey][]executor.Report
	order   []executor.Report // all of them, as they came
	finals  int               // reports that are not Started
}

// NewRecorder returns a Recorder for one executor.
func NewRecorder(t testing.TB) *Recorder {
	r := &Recorder{t: t, reports: map[messages.AttemptKey][]executor.Report{}}
	r.changed = sync.NewCond(&r.mu)
	return r
}

// Sink is the executor.Sink.
func (r *Recorder) Sink(reports ...executor.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rep := range reports {
		r.add(rep)
	}
}

// add checks and keeps one report. r.mu is held.
func (r *Recorder) add(rep executor.Report) {
	for _, old := range r.reports[rep.Key] {
		switch {
		case old.Kind == executor.Revoked && rep.Kind != executor.Revoked:
			// A revoked key may be ordered again.
		case old.Kind == executor.Revoked:
		case old.Kind != executor.Started:
			r.t.Errorf("%v: report of kind %d after the final one (%d)", rep.Key, rep.Kind, old.Kind)
		case rep.Kind == executor.Started:
			r.t.Errorf("%v: started twice", rep.Key)
		case rep.Kind == executor.Revoked:
			r.t.Errorf("%v: revoked after it had started", rep.Key)
		}
	}
	if rep.Kind == executor.Finished {
		if rec := rep.Record; rec.Task != rep.Key.Task || rec.Attempt != rep.Key.Attempt {
			r.t.Errorf("%v: record of task %d attempt %d", rep.Key, rec.Task, rec.Attempt)
		}
	}
	if rep.At == 0 {
		r.t.Errorf("%v: report of kind %d without a time", rep.Key, rep.Kind)
	}
	r.reports[rep.Key] = append(r.reports[rep.Key], rep)
	r.order = append(r.order, rep)
	if rep.Kind != executor.Started {
		r.finals++
	}
	r.changed.Broadcast()
}

// Reports returns the reports of a key so far.
func (r *Recorder) Reports(key messages.AttemptKey) []executor.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]executor.Report(nil), r.reports[key]...)
}

// All returns all reports so far, as they came.
func (r *Recorder) All() []executor.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]executor.Report(nil), r.order...)
}

// Starts returns how often the key has started: the number of its Started reports, or 1 when only
// its end tells of a start. An executor may leave out the Started of an attempt that has ended by then.
func (r *Recorder) Starts(key messages.AttemptKey) (n int) {
	for _, rep := range r.Reports(key) {
		if rep.Kind == executor.Started || n == 0 && rep.Record.Start != 0 {
			n++
		}
	}
	return n
}

// WaitStarted blocks until the key's Started report, and returns it. Use it for attempts that last: a
// short one may end without it.
func (r *Recorder) WaitStarted(key messages.AttemptKey) executor.Report {
	r.t.Helper()
	return r.waitReport(key, "start", func(k executor.ReportKind) bool { return k == executor.Started })
}

// WaitFinal blocks until the key's final report, and returns the first one.
func (r *Recorder) WaitFinal(key messages.AttemptKey) executor.Report {
	r.t.Helper()
	return r.waitReport(key, "end", func(k executor.ReportKind) bool { return k != executor.Started })
}

// WaitFinals blocks until n orders have their final report, whichever they are.
func (r *Recorder) WaitFinals(n int) {
	r.t.Helper()
	r.wait(func() string { return fmt.Sprintf("%d final reports; there are %d", n, r.finals) },
		func() bool { return r.finals >= n })
}

// waitReport blocks until a report of the key has a wanted kind. A timeout names the reports that came.
func (r *Recorder) waitReport(key messages.AttemptKey, what string, want func(executor.ReportKind) bool) (found executor.Report) {
	r.t.Helper()
	r.wait(func() string { return fmt.Sprintf("the %s of %v; its reports: %+v", what, key, r.reports[key]) }, func() bool {
		for _, rep := range r.reports[key] {
			if want(rep.Kind) {
				found = rep
				return true
			}
		}
		return false
	})
	return found
}

func (r *Recorder) wait(what func() string, done func() bool) {
	r.t.Helper()
	waitCond(r.t, &r.mu, r.changed, what, done)
}

// waitCond blocks until done returns true. It calls done under mu, whenever changed is signalled. It
// fails the test when changed is not signalled for waitLimit. what is called under mu, too, and says
// what was waited for. A sync.Cond cannot wait with a deadline, so the timer signals it.
func waitCond(t testing.TB, mu *sync.Mutex, changed *sync.Cond, what func() string, done func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(waitLimit, func() {
		mu.Lock()
		defer mu.Unlock()
		late = true
		changed.Broadcast()
	})
	defer timer.Stop()
	mu.Lock()
	for !done() && !late {
		changed.Wait()
		timer.Reset(waitLimit)
	}
	missing := ""
	if !done() {
		missing = what()
	}
	mu.Unlock()
	if missing != "" {
		t.Fatalf("no news for %v: waited for %s", waitLimit, missing)
	}
}

// SyncBuffer is a buffer for logs. It may be written and read concurrently.
type SyncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (l *SyncBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all that was written.
func (l *SyncBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
