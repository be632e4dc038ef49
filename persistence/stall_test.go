package persistence

import (
	"testing"
	"time"
)

// fakeTimer is a clock whose one timer fires when it is told to.
type fakeTimer struct {
	now time.Time
	due func()
	at  time.Time
}

func (f *fakeTimer) watch(t *testing.T) (w *stallWatch, alarmed func() bool) {
	alarms := make(chan time.Duration, 1)
	w = newStallWatch(func(d time.Duration) { alarms <- d })
	w.now = func() time.Time { return f.now }
	w.after = func(d time.Duration, fn func()) { f.due, f.at = fn, f.now.Add(d) }
	return w, func() bool {
		if f.due != nil { // it counts on
			return false
		}
		select {
		case d := <-alarms:
			return d == stallLimit
		case <-time.After(10 * time.Second):
			t.Error("neither a timer nor an alarm")
			return false
		}
	}
}

// fire has the timer fire, late by so much.
func (f *fakeTimer) fire(late time.Duration) {
	due := f.due
	f.now, f.due = f.at.Add(late), nil
	due()
}

// TestStallWatch: a commit that does not end is a disk that hangs after a minute in which
// the process ran; a pause of the process is not.
func TestStallWatch(t *testing.T) {
	f := &fakeTimer{now: time.Unix(1000, 0)}
	w, alarmed := f.watch(t)
	w.commitStarted()
	for range 59 {
		f.fire(0)
	}
	if alarmed() {
		t.Fatal("alarm after 59 s")
	}
	f.fire(0)
	if !alarmed() {
		t.Fatal("no alarm after a minute")
	}

	f = &fakeTimer{now: time.Unix(1000, 0)}
	w, alarmed = f.watch(t)
	for range 100 { // each commit is counted by itself
		w.commitStarted()
		f.fire(0)
		w.commitEnded()
	}
	w.commitStarted()
	stale := f.due
	for range 30 {
		f.fire(100 * time.Millisecond) // a busy machine
	}
	f.fire(65 * time.Second) // SIGSTOP and SIGCONT
	f.fire(24 * time.Hour)   // a machine that slept
	if alarmed() {
		t.Fatal("alarm for a pause")
	}
	for range 24 { // 29 x 1.1 s and these: a commit is counted from its first tick on
		f.fire(0)
	}
	if alarmed() {
		t.Fatal("alarm before a minute was seen")
	}
	for range 5 {
		if f.due != nil {
			f.fire(0)
		}
	}
	if !alarmed() {
		t.Fatal("no alarm for a disk that hangs, behind a pause")
	}
	w.commitEnded()
	stale() // it fired while the commit ended
}

// TestStallWatchRests: commits share a timer, which rests when there are none.
func TestStallWatchRests(t *testing.T) {
	f := &fakeTimer{now: time.Unix(1000, 0)}
	w, _ := f.watch(t)
	w.commitStarted()
	w.commitEnded()
	first := f.at
	f.now = f.now.Add(stallTick / 2)
	w.commitStarted()
	w.commitEnded()
	if f.at != first {
		t.Error("a second commit has started a second timer")
	}
	f.fire(0)
	if f.due != nil {
		t.Error("the timer goes on without a commit")
	}
	w.commitStarted()
	if f.due == nil {
		t.Error("the next commit is not watched")
	}
}
