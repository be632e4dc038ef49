package executortest

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// Script says what a Fake does with an order as soon as it accepts it. It is called from Start, in the
// goroutine of the caller and without a lock, so it may call the Fake.
type Script func(executor.Order) Step

// Step is one answer of a Script. The zero Step is a success: Started, and Finished with rc 0. Panic wins
// over Hold, Hold over Begin, and Begin over End.
type Step struct {
	Hold  bool                   // leave the order to the test
	Begin bool                   // report Started and leave it running
	End   messages.AttemptResult // otherwise: report Started (unless NotStarted) and Finished with this result
	RC    int32                  // 0 = the result's usual code
	Out   string                 // stdout: of the record and, with Order.Capture, of the report
	Panic any                    // not nil: Start panics with it
}

// Fake is an Executor without processes whose every step the test decides. It outlives the node that
// uses it, so that a recovered node can be bound to it. It is safe for concurrent use.
//
//	Start -> waits --Begin--> runs --End, Kill--> ended
//	         waits --Revoke, Kill--> forgotten, its key is free
//	         waits --End, EndWithoutStart--> ended
//
// Slots do not bound it: the test or the script decides when an order begins. Counts (Starts, Kills,
// Revokes) are over all bindings; the orders themselves are forgotten by Bind.
type Fake struct {
	mu        sync.Mutex // guards all below; not held while the sink or the script is called
	changed   *sync.Cond // of mu; signalled by each order, step and call
	sink      executor.Sink
	script    Script
	now       func() int64 // ns since the epoch
	closed    bool
	holdKills bool
	orders    map[messages.AttemptKey]*fakeOrder // also ended ones, so that a key starts once
	accepted  []executor.Order                   // since NewFake
	starts    map[messages.AttemptKey]int
	kills     map[messages.AttemptKey]int
	revokes   map[messages.AttemptKey]int

	// All reports pass through the outbox, so that they come in order. One goroutine at a time
	// delivers: a second one that adds a report leaves it to the first.
	outbox     []queuedReport
	delivering bool
	deliveries int  // calls of the sink that are over
	bindings   int  // calls of Bind
	gathers    bool // see GatherReports
	isDue      bool // a delivery is under way, by a timer
}

// queuedReport is a report with the sink that was bound when it was made: a report of a former node
// does not reach the next one.
type queuedReport struct {
	binding int // by which Bind the sink was set
	sink    executor.Sink
	report  executor.Report
}

// fakeOrder is an accepted order and what has become of it. Fake.mu guards it.
type fakeOrder struct {
	order     executor.Order
	begun     int64         // ns since the epoch; 0 = waits
	idle      time.Duration // Report.StartDelay of the end
	ended     bool
	out       string          // printed to stdout so far
	end       executor.Report // when it has ended
	unclaimed bool            // see Durable
}

// NewFake returns a Fake that holds every order until the test decides.
func NewFake() *Fake {
	f := &Fake{
		now:     func() int64 { return time.Now().UnixNano() },
		orders:  map[messages.AttemptKey]*fakeOrder{},
		starts:  map[messages.AttemptKey]int{},
		kills:   map[messages.AttemptKey]int{},
		revokes: map[messages.AttemptKey]int{},
	}
	f.changed = sync.NewCond(&f.mu)
	return f
}

// Bind sets the sink and returns the Fake, in the form that actors.Config wants. Binding again
// reopens a closed Fake; live orders are forgotten.
func (f *Fake) Bind(sink executor.Sink) (executor.Executor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sink, f.closed = sink, false
	f.bindings++
	f.orders = map[messages.AttemptKey]*fakeOrder{}
	return f, nil
}

// SetScript makes the Fake answer each later order by the script; nil holds all orders.
func (f *Fake) SetScript(s Script) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script = s
}

// HoldKills makes Kill only count: the test ends killed attempts itself.
func (f *Fake) HoldKills(hold bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holdKills = hold
}

// SetClock replaces the clock of the reports (ns since the epoch).
func (f *Fake) SetClock(now func() int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now
}

// Start implements executor.Executor. An order whose key is known, live or ended, is ignored. The script
// decides on any other; its reports are delivered before Start returns, unless another goroutine delivers.
func (f *Fake) Start(o executor.Order) {
	f.mu.Lock()
	if f.closed {
		f.post(executor.Report{Key: o.Key, Kind: executor.Revoked, At: f.now()})
		f.mu.Unlock()
		f.flush()
		return
	}
	if f.orders[o.Key] != nil {
		f.mu.Unlock()
		return
	}
	fo := &fakeOrder{order: o}
	f.orders[o.Key] = fo
	f.accepted = append(f.accepted, o)
	f.changed.Broadcast()
	script := f.script
	f.mu.Unlock()
	if script == nil {
		return
	}
	step := script(o)
	f.mu.Lock()
	if step.Panic != nil {
		delete(f.orders, o.Key)
		f.mu.Unlock()
		panic(step.Panic)
	}
	// The order may have been revoked while the script ran.
	if f.orders[o.Key] == fo && !fo.ended && !step.Hold {
		fo.out = step.Out
		if fo.begun == 0 && (step.Begin || step.End != messages.AttemptNotStarted) {
			f.begin(fo)
		}
		if !step.Begin {
			f.end(fo, step.End, step.RC)
		}
	}
	f.mu.Unlock()
	f.flush()
}

// Begin reports the order as Started. It panics when the order is not waiting.
func (f *Fake) Begin(key messages.AttemptKey) {
	f.mu.Lock()
	fo := f.orders[key]
	if fo == nil || fo.begun != 0 || fo.ended {
		f.mu.Unlock()
		panic(fmt.Sprintf("executortest: Begin of %v, which does not wait", key))
	}
	f.begin(fo)
	f.mu.Unlock()
	f.flush()
}

// End reports the order as Finished with the result. It reports Started before that if the order had
// not begun (unless the result is NotStarted). rc 0 stands for the result's usual code. It panics
// when the order is unknown or has ended.
func (f *Fake) End(key messages.AttemptKey, result messages.AttemptResult, rc int32) {
	f.mu.Lock()
	fo := f.orders[key]
	if fo == nil || fo.ended {
		f.mu.Unlock()
		panic(fmt.Sprintf("executortest: End of %v, which is not live", key))
	}
	if fo.begun == 0 && result != messages.AttemptNotStarted {
		f.begin(fo)
	}
	f.end(fo, result, rc)
	f.mu.Unlock()
	f.flush()
}

// EndWithoutStart reports the order as Finished, including its start and start delay, without a
// Started before. It panics when the order is not waiting.
func (f *Fake) EndWithoutStart(key messages.AttemptKey, result messages.AttemptResult, rc int32, idle time.Duration) {
	f.mu.Lock()
	fo := f.orders[key]
	if fo == nil || fo.begun != 0 || fo.ended {
		f.mu.Unlock()
		panic(fmt.Sprintf("executortest: EndWithoutStart of %v, which does not wait", key))
	}
	fo.begun, fo.idle = max(f.now(), 1), idle
	f.starts[key]++
	f.end(fo, result, rc)
	f.mu.Unlock()
	f.flush()
}

// post puts a report into the outbox. f.mu is held. flush must follow, without f.mu.
func (f *Fake) post(r executor.Report) {
	if fo := f.orders[r.Key]; fo != nil && fo.unclaimed {
		return
	}
	f.outbox = append(f.outbox, queuedReport{f.bindings, f.sink, r})
}

const (
	gatherTime = 300 * time.Microsecond
	gatherMax  = 20
)

// GatherReports makes the Fake deliver its reports several at a time, as a worker does whose frames hold
// several: those of 300 µs, or 20.
func (f *Fake) GatherReports() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gathers = true
}

// awaitDelivery waits for the call of the sink that is under way. f.mu is held, and released while it waits.
func (f *Fake) awaitDelivery() {
	for before := f.deliveries; f.delivering && f.deliveries == before; {
		f.changed.Wait()
	}
}

// flush delivers the outbox, unless another goroutine is delivering it. The sink is called without mu,
// because the engine calls the Fake from within it. A report that the sink causes joins the outbox, and is
// delivered after the present one: by the loop here, not by the nested call.
func (f *Fake) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gathers && !f.closed && len(f.outbox) < gatherMax {
		if !f.isDue {
			f.isDue = true
			time.AfterFunc(gatherTime, f.deliverDue)
		}
		return
	}
	f.deliver()
}

// deliverDue delivers what was gathered.
func (f *Fake) deliverDue() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isDue = false
	f.deliver()
}

// deliver is flush, at once. f.mu is held.
func (f *Fake) deliver() {
	if f.delivering {
		return
	}
	f.delivering = true
	for len(f.outbox) > 0 {
		first := f.outbox[0]
		batch := []executor.Report{first.report}
		for f.outbox = f.outbox[1:]; f.gathers && len(f.outbox) > 0 && f.outbox[0].binding == first.binding; f.outbox = f.outbox[1:] {
			batch = append(batch, f.outbox[0].report)
		}
		f.mu.Unlock()
		first.sink(batch...)
		f.mu.Lock()
		f.deliveries++
		f.changed.Broadcast()
	}
	f.delivering = false
	f.changed.Broadcast()
}

// begin reports the order as Started. f.mu is held, and flush follows.
func (f *Fake) begin(fo *fakeOrder) {
	fo.begun = max(f.now(), 1)
	f.starts[fo.order.Key]++
	f.changed.Broadcast()
	f.post(executor.Report{Key: fo.order.Key, Kind: executor.Started, At: fo.begun})
}

// end reports the order as Finished, and keeps the report for a Durable to repeat. f.mu is held, and flush
// follows.
func (f *Fake) end(fo *fakeOrder, result messages.AttemptResult, rc int32) {
	fo.ended = true
	f.changed.Broadcast()
	if rc == 0 {
		rc = usualRC(result)
	}
	stop := max(f.now(), fo.begun)
	r := executor.Report{Key: fo.order.Key, Kind: executor.Finished, At: stop, StartDelay: fo.idle, Record: messages.AttemptRecord{
		Task: fo.order.Key.Task, Attempt: fo.order.Key.Attempt, Result: result, RC: rc,
		Start: fo.begun, Stop: stop,
	}}
	if fo.out != "" {
		n := int64(len(fo.out))
		r.Record.Stdout = messages.Output{Size: n, Head: n, Inline: []byte(fo.out)}
	}
	if fo.order.Capture {
		r.Stdout = []byte(fo.out)
	}
	fo.end = r
	f.post(r)
}

// revoke forgets the order, so that the same key may be ordered again.
func (f *Fake) revoke(fo *fakeOrder) {
	delete(f.orders, fo.order.Key)
	f.post(executor.Report{Key: fo.order.Key, Kind: executor.Revoked, At: f.now()})
}

// usualRC is the exit code that a process of this machine has with a result: 137 for SIGKILL, 143 for
// SIGTERM, -1 without a process.
func usualRC(result messages.AttemptResult) int32 {
	switch result {
	case messages.AttemptSucceeded, messages.AttemptRejected:
		return 0
	case messages.AttemptFailed:
		return 1
	case messages.AttemptSignaled:
		return 128 + 9
	case messages.AttemptTimedOut, messages.AttemptKilled:
		return 128 + 15
	}
	return -1
}

// Print appends to the stdout of an attempt that has not ended.
func (f *Fake) Print(key messages.AttemptKey, s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fo := f.orders[key]; fo != nil && !fo.ended {
		fo.out += s
	}
}

// Kill implements executor.Executor. A running attempt ends as Killed at once, unless HoldKills is
// set.
func (f *Fake) Kill(key messages.AttemptKey, _ time.Duration) {
	f.mu.Lock()
	f.kills[key]++
	f.changed.Broadcast()
	switch fo := f.orders[key]; {
	case fo == nil || fo.ended:
	case fo.begun == 0:
		f.revoke(fo)
	case !f.holdKills:
		f.end(fo, messages.AttemptKilled, 0)
	}
	f.mu.Unlock()
	f.flush()
}

// Revoke implements executor.Executor.
func (f *Fake) Revoke(key messages.AttemptKey) {
	f.mu.Lock()
	f.revokes[key]++
	f.changed.Broadcast()
	if fo := f.orders[key]; fo != nil && !fo.ended && fo.begun == 0 {
		f.revoke(fo)
	}
	f.mu.Unlock()
	f.flush()
}

// OpenLog implements executor.Executor. It reads what was printed so far to stdout.
func (f *Fake) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fo := f.orders[key]
	if fo == nil || fo.ended || fo.begun == 0 {
		return nil, executor.ErrNotRunning
	}
	return &fakeLog{f: f, fo: fo, empty: stream != messages.Stdout}, nil
}

// Close implements executor.Executor. Running attempts are lost, waiting orders are revoked. It must
// not be called from the sink.
func (f *Fake) Close() error {
	f.mu.Lock()
	f.closed = true
	for _, o := range f.accepted {
		switch fo := f.orders[o.Key]; {
		case fo == nil || fo.ended:
		case fo.begun == 0:
			f.revoke(fo)
		default:
			f.end(fo, messages.AttemptLost, 0)
		}
	}
	f.mu.Unlock()
	f.flush()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.delivering {
		f.changed.Wait()
	}
	return nil
}

// Orders returns the orders that were accepted since NewFake, in order.
func (f *Fake) Orders() []executor.Order {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]executor.Order(nil), f.accepted...)
}

// Starts returns how often the key was begun, since NewFake, over all bindings.
func (f *Fake) Starts(key messages.AttemptKey) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[key]
}

// Kills returns how often Kill was called with the key.
func (f *Fake) Kills(key messages.AttemptKey) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kills[key]
}

// Revokes returns how often Revoke was called with the key.
func (f *Fake) Revokes(key messages.AttemptKey) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revokes[key]
}

// Live returns the keys that were ordered and have not ended, in order.
func (f *Fake) Live() []messages.AttemptKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []messages.AttemptKey
	for _, o := range f.accepted {
		if fo := f.orders[o.Key]; fo != nil && !fo.ended {
			keys = append(keys, o.Key)
		}
	}
	return keys
}

// WaitOrders blocks until n orders have been accepted since NewFake and returns them all. The test
// fails when that takes too long.
func (f *Fake) WaitOrders(t testing.TB, n int) []executor.Order {
	t.Helper()
	f.wait(t, fmt.Sprintf("%d orders", n), func() bool { return len(f.accepted) >= n })
	return f.Orders()
}

// WaitKill blocks until Kill was called with the key; the test fails when that takes too long.
func (f *Fake) WaitKill(t testing.TB, key messages.AttemptKey) {
	t.Helper()
	f.wait(t, fmt.Sprintf("a kill of %v", key), func() bool { return f.kills[key] > 0 })
}

// WaitRevoke blocks until Revoke was called with the key; the test fails when that takes too long.
func (f *Fake) WaitRevoke(t testing.TB, key messages.AttemptKey) {
	t.Helper()
	f.wait(t, fmt.Sprintf("a revoke of %v", key), func() bool { return f.revokes[key] > 0 })
}

func (f *Fake) wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	waitCond(t, &f.mu, f.changed, func() string { return what }, done)
}

// fakeLog reads what the test printed to stdout, also after the end of the attempt: an open log outlives
// it. stderr is empty.
type fakeLog struct {
	f     *Fake
	fo    *fakeOrder
	empty bool
}

// text returns what was printed so far, and whether more may come.
func (l *fakeLog) text() (s string, live bool) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.empty {
		return "", !l.fo.ended
	}
	return l.fo.out, !l.fo.ended
}

func (l *fakeLog) ReadAt(p []byte, off int64) (int, error) {
	s, _ := l.text()
	if off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *fakeLog) Size() int64 {
	s, _ := l.text()
	return int64(len(s))
}

func (l *fakeLog) Kept(off int64) int64 { return min(off, l.Size()) }

func (l *fakeLog) Live() bool {
	_, live := l.text()
	return live
}

func (l *fakeLog) Close() error { return nil }
