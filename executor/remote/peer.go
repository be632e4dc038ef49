package remote

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/procfs"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

const (
	// acknowledgementDelay is how long acknowledgements wait for other items of a frame.
	acknowledgementDelay = 20 * time.Millisecond
	// orderDelay is how long an order waits for others when the worker has more than fewPending orders
	// and too few slots to begin it.
	orderDelay = 4 * time.Millisecond
	fewPending = 8
	// defaultDetachTimeout bounds the wait of Detach for workers to take in the acknowledgements.
	defaultDetachTimeout = time.Second
	// maxRetryDelay bounds the delay between connections to a worker that does not answer.
	maxRetryDelay = 500 * time.Millisecond
)

// peer is one worker, alive or dead, with its folder. Its goroutine (run) connects again and again,
// until the lock of the folder shows that the worker has ended. In the course of its life
//
//	attached        it has said what it knows, on the present connection: orders may be sent
//	synced          it has done so once: the supervisor knows its attempts
//	draining        it was told to give back its orders and accept no more
//	drained         it has confirmed that, and usage is valid
//	workerGone      it has ended; the supervisor recovers its state next
//	recovered       its state was adopted; its folder stays until all ends are acknowledged
//
// They follow each other in this sequence, except that a worker may end at any time, and attached begins
// again with each connection. Remote.mu guards the fields after the channels.
type peer struct {
	r          *Remote
	path       string        // of its folder, whose last part is the worker's name, such as w-5e0f3c9a71d2
	cmd        *exec.Cmd     // of a worker that this process started; nil for one that it found
	wakeSender chan struct{} // outgoing has items that are to be sent
	leave      chan struct{} // closed by Detach: send what is left, then end
	ended      chan struct{} // closed when run has returned

	outgoing  *workerpb.ServerFrame        // what the worker is to hear
	sendTimer *time.Timer                  // wakes the sender; nil when it is not set
	sendDue   time.Time                    // when the timer fires
	pending   pendingOrders                // orders on this connection that are not known to have begun
	conn      *grpc.ClientConn             // while there is one
	session   workerpb.Session             // the one that was begun on this connection; zero before the hello
	listed    map[messages.AttemptKey]bool // attempts that it named on this connection; nil once attached
	attached  bool                         // it has said what it knows, on this connection
	synced    bool                         // it has said so once, on any connection
	version   string                       // of its hello: binary and settings, see workerVersion; "" before it
	pid       int                          // of its hello; 0 before it
	draining  bool                         // it was told to give back its orders
	drained   bool                         // it accepts no more orders, and usage is valid
	usage     workerpb.Amount              // slots that its attempts still use; valid once drained
	capacity  workerpb.Amount              // told on this connection

	heard          bool            // a frame came since the last heartbeat
	pinged         bool            // a ping was sent, and no frame came since
	silentBeats    int             // heartbeats without a frame
	unresponsive   bool            // too many of them
	process        procfs.Identity // the worker's own process; zero when it is not known
	workerGone     bool            // the worker has ended
	folder         *worker.Folder  // of a worker that has ended; nil when it is missing
	recovered      bool            // the state of the dead worker was adopted
	recoveryErr    error           // of the last try to recover it; nil before that and once it is recovered
	unacknowledged int             // ends of the dead worker's journal; at 0 the folder goes
}

// newPeer returns a peer for the worker with this folder, which may be dead, or missing with its folder.
// The caller enters it in Remote.peers and starts run.
func newPeer(r *Remote, path string) *peer {
	return &peer{r: r, path: path, outgoing: workerpb.ServerFrameFromVTPool(),
		wakeSender: make(chan struct{}, 1), leave: make(chan struct{}), ended: make(chan struct{})}
}

// requestSend wakes the sender, which takes all that is in outgoing by then. mu is held.
func (p *peer) requestSend() {
	select {
	case p.wakeSender <- struct{}{}:
	default:
	}
}

// requestSendWithin wakes the sender within a while, so that items that are not urgent share a frame. An
// earlier wake-up stands; a later one is brought forward. mu is held.
func (p *peer) requestSendWithin(d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case p.sendTimer == nil:
		p.sendTimer = time.AfterFunc(d, func() {
			p.r.mu.Lock()
			defer p.r.mu.Unlock()
			p.sendTimer = nil
			p.requestSend()
		})
	case due.Before(p.sendDue):
		p.sendTimer.Reset(d)
	default:
		return
	}
	p.sendDue = due
}

// takeFrame returns what is to be sent, which may be an empty frame. The caller gives it back to the pool.
// mu is held.
func (p *peer) takeFrame() (frame *workerpb.ServerFrame) {
	frame, p.outgoing = p.outgoing, workerpb.ServerFrameFromVTPool()
	if p.sendTimer != nil {
		p.sendTimer.Stop()
		p.sendTimer = nil
	}
	return frame
}

// beginSession begins a session with the worker, which has said hello: of partition 0 in epoch 0. The worker
// refuses items in outgoing that belong to an earlier session, except acknowledgements. completeSync sends
// what it lacks. mu is held.
func (p *peer) beginSession() {
	p.r.lastSession++
	p.session = workerpb.Session{Number: p.r.lastSession}
	p.outgoing.AddLead(p.session)
	p.repeatLeases()
	p.requestSend()
}

// orders returns the part of the next frame that has the orders of the present session. mu is held.
func (p *peer) orders() *workerpb.PartitionOrders { return p.outgoing.OrdersIn(p.session) }

// pendingOrders counts orders and adds up their slots. While they fill the machine, a worker cannot begin
// more, so that further orders may wait for others (sendOrder).
type pendingOrders struct{ count, cpuMillis, memoryBytes int64 }

// add adds an order n times; the order may be unknown (nil). The result is never below zero, because
// an order that was sent on a former connection was not added.
func (p *pendingOrders) add(o *executor.Order, n int64) {
	p.count = max(p.count+n, 0)
	if o != nil {
		p.cpuMillis = max(p.cpuMillis+n*o.CPUMillis, 0)
		p.memoryBytes = max(p.memoryBytes+n*o.MemoryBytes, 0)
	}
	if p.count == 0 {
		*p = pendingOrders{}
	}
}

// sendOrder sends an order: at once, or within orderDelay when the worker cannot begin it yet, so that
// orders which would only wait in the worker share a frame. The orders that wait there
// already, more than fewPending, fill the slots that become free within that time. mu is held.
func (p *peer) sendOrder(o *executor.Order) {
	busy := p.pending.count > fewPending && (p.pending.cpuMillis >= p.r.cfg.CPUMillis || p.pending.memoryBytes >= p.r.cfg.MemoryBytes)
	p.pending.add(o, 1)
	p.orders().AddOrder(o)
	if busy {
		p.requestSendWithin(orderDelay)
		return
	}
	p.requestSend()
}

// orderAnswered takes an order off the pending ones when the worker first says what became of it. mu
// is held.
func (p *peer) orderAnswered(a *trackedAttempt) {
	if a.State() == lifecycle.Queued {
		p.pending.add(a.order, -1)
	}
}

// run talks to the worker until the worker or ctx has ended. After each connection it tries the lock of the
// worker's folder: a worker holds it for life, so getting it proves that the worker is dead. The file may
// have been removed and made again while the worker lives, so the identity of the process has a say too.
// Otherwise it connects again, after 1 ms at first and up to maxRetryDelay later.
func (p *peer) run() {
	defer close(p.ended)
	wait := time.Millisecond
	for {
		synced, _ := p.connect()
		if p.r.ctx.Err() != nil || p.isLeaving() {
			return
		}
		folder, err := worker.LockFolder(p.path)
		switch {
		case err == nil && p.process.IsAlive():
			folder.Release() // its lock file was removed by somebody else
		case err == nil, errors.Is(err, fs.ErrNotExist):
			p.workerEnded(folder)
			return
		}
		if synced {
			wait = time.Millisecond
		}
		select {
		case <-p.r.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRetryDelay)
	}
}

// isLeaving reports whether Detach has closed leave: the end of the connection says nothing about the worker
// then.
func (p *peer) isLeaving() bool {
	select {
	case <-p.leave:
		return true
	default:
		return false
	}
}

// workerEnded notes that the worker has ended; folder is nil when it is missing. The supervisor does the
// rest. A worker that dies before it ever served counts for the delay of the next start (startWorker).
func (p *peer) workerEnded(folder *worker.Folder) {
	if p.cmd != nil {
		_ = p.cmd.Wait() // it has released its lock: it has ended, or is about to
	}
	r := p.r
	r.mu.Lock()
	defer r.unlockAndDeliver()
	p.workerGone, p.folder = true, folder
	if !p.synced && p.cmd != nil {
		r.earlyDeaths++ // workers of a former server do not count
	}
	if r.active == p {
		r.active = nil
	}
	if r.phase == phaseOpen && !p.drained {
		r.log.Warn("a worker has ended", p.logFields()...)
	}
	r.requestReconcile()
}

// connect has one connection with the worker and returns when it is over. synced reports whether the
// worker had said all that it knows. Items that were to be sent on a former connection are dropped:
// completeSync sends what the worker lacks, and distributeCapacity the slots, since p.capacity is reset.
func (p *peer) connect() (synced bool, _ error) {
	r := p.r
	conn, err := grpc.NewClient("passthrough:///"+filepath.Base(p.path), append(workerpb.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return worker.Dial(p.path) }))...)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stream, err := workerpb.NewWorkerClient(conn).Attach(ctx)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	p.takeFrame().ReturnToVTPool() // items of the former connection
	p.conn, p.listed, p.pending = conn, map[messages.AttemptKey]bool{}, pendingOrders{}
	p.capacity, p.pinged, p.session = workerpb.Amount{}, false, workerpb.Session{}
	r.unlockAndDeliver()

	sender := make(chan struct{})
	go func() {
		defer close(sender)
		p.sendFrames(ctx, stream)
	}()
	err = p.receiveFrames(stream)
	cancel()
	<-sender
	r.mu.Lock()
	defer r.unlockAndDeliver()
	synced = p.attached
	p.attached, p.conn, p.listed = false, nil, nil
	return synced, err
}

// attachStream is the server's side of the stream to a worker.
type attachStream = grpc.BidiStreamingClient[workerpb.ServerFrame, workerpb.WorkerFrame]

// sendFrames sends what gathers in p.outgoing, until ctx ends or leave is closed. Then it only closes
// its half of the stream: the worker ends the other half when it has carried out all frames. A canceled
// stream would drop the frames that the worker has not read.
func (p *peer) sendFrames(ctx context.Context, stream attachStream) {
	for leaving := false; !leaving; {
		select {
		case <-ctx.Done():
			return
		case <-p.leave:
			leaving = true
		case <-p.wakeSender:
		}
		// The goroutine that woke this one often adds more at once.
		runtime.Gosched()
		p.r.mu.Lock()
		frame := p.takeFrame()
		p.r.mu.Unlock()
		if !frame.IsEmpty() && stream.Send(frame) != nil {
			return // receive learns why
		}
		frame.ReturnToVTPool()
	}
	_ = stream.CloseSend()
}

// errStopped says that the worker has ended all attempts and waits for the end of the connection.
var errStopped = errors.New("worker has stopped")

// completeSync compares what the worker knows with what it should know, once the worker has said all,
// and sends what may have been lost with a former connection: kills and revocations of attempts that the
// worker has, and orders that it does not have. An order that it does not have and that is not wanted
// any more never began. mu is held.
//
// To send an item twice is harmless. The worker answers an order that it has with the state of the
// attempt, and a kill or revocation of an attempt that has ended has no effect. An attempt that it has
// ended stays in its table until this server acknowledges the end, so "not listed" proves that the
// order was lost on its way, or was given back.
func (p *peer) completeSync() {
	r := p.r
	var resend []messages.AttemptKey
	for key, a := range r.attempts {
		if a.peer != p || a.State() == lifecycle.Ended {
			continue
		}
		switch {
		case p.listed[key]:
			if a.killed {
				p.orders().AddKill(key, a.grace)
			}
			if a.revoked && a.State() == lifecycle.Queued {
				p.orders().AddRevocation(key)
			}
		case a.order == nil:
			r.dropUnordered(key, a, true)
		case a.killed || a.revoked:
			delete(r.attempts, key)
			r.queueReport(revokedReport(key))
		case p.draining || r.phase != phaseOpen:
			a.peer = nil
		default:
			resend = append(resend, key)
		}
	}
	r.sortBySequence(resend)
	for _, key := range resend {
		p.sendOrder(r.attempts[key].order)
	}
	p.outgoing.Drain = p.outgoing.Drain || p.draining
	p.outgoing.Stop = p.outgoing.Stop || r.phase == phaseClosing
	p.listed, p.attached, p.synced = nil, true, true
	r.earlyDeaths = 0
	p.requestSend()
	r.requestReconcile()
}
