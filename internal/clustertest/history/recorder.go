package history

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the time since the machine started. It does not follow changes of the wall clock, goes on
// while a process is stopped, and is also the first number of /proc/uptime, where the processes of
// tasks read it with a resolution of 10 ms.
func Clock() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic("read CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(now.Nano())
}

// Recorder collects operations and streams. It is safe for concurrent use.
type Recorder struct {
	now func() time.Duration

	mu         sync.Mutex
	operations []Operation
	streams    []Stream
}

// NewRecorder returns a recorder that reads the times from now, usually Clock.
func NewRecorder(now func() time.Duration) *Recorder { return &Recorder{now: now} }

// PendingOperation is an operation without an answer. It names the place of the operation in the
// recorder's list, since the list may move when it grows.
type PendingOperation struct {
	recorder *Recorder
	index    int
}

// Begin notes the call of an operation, at the present time. Call it directly before the request is
// sent. Until End the outcome is Unknown, so a client that gives up or is killed needs no End.
func (r *Recorder) Begin(o Operation) *PendingOperation {
	o.Outcome = Unknown
	r.mu.Lock()
	defer r.mu.Unlock()
	o.Call = r.now()
	r.operations = append(r.operations, o)
	return &PendingOperation{r, len(r.operations) - 1}
}

// End notes the answer, at the present time. fill sets the Outcome and what else the answer says; it
// must not call the recorder.
func (p *PendingOperation) End(fill func(*Operation)) {
	p.recorder.mu.Lock()
	defer p.recorder.mu.Unlock()
	o := &p.recorder.operations[p.index]
	o.Return = p.recorder.now()
	fill(o)
}

// AddStream adds what a client saw of a run's events. The recorder keeps the slice of its events.
func (r *Recorder) AddStream(s Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams = append(r.streams, s)
}

// History returns the operations and streams so far. The caller adds the rest.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &History{Operations: slices.Clone(r.operations), Streams: slices.Clone(r.streams)}
}
