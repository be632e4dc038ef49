package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// How long acknowledgements wait for company, and orders that the worker cannot begin yet; of how
// many orders such ones come after (few). How long Detach waits for workers to have taken in what
// was acknowledged, and the pace at which a worker that does not answer is asked again.
const (
	linger         = 20 * time.Millisecond
	orderLinger    = 4 * time.Millisecond
	few            = 8
	detachPatience = time.Second
	slowest        = 500 * time.Millisecond
)

// peer is one worker, alive or dead, with its folder. Remote.mu guards what follows
// the channels.
type peer struct {
	r     *Remote
	path  string
	cmd   *exec.Cmd // of a worker that this process started
	some  chan struct{}
	leave chan struct{} // closed by Detach: send what is left, and go
	over  chan struct{} // closed when run has returned

	out      *workerpb.ServerFrame // to send
	later    *time.Timer           // sends them; nil when that is not to come
	due      time.Time             // when it does
	ahead    ahead                 // orders on this connection that are not known to have begun
	conn     *grpc.ClientConn      // while there is one
	listed   map[messages.AttemptKey]bool
	attached bool // it has said what it knows, on this connection
	synced   bool // it has, once
	version  string
	pid      int
	draining bool // it was told to
	drained  bool // it takes nothing any more, and usage holds
	usage    workerpb.Amount
	capacity workerpb.Amount // told on this connection

	heard   bool            // since the last pulse
	asked   bool            // for a sign of life, and not heard since
	silent  int             // pulses without one
	mute    bool            // too many
	process worker.Identity // the worker's own process; zero when it is not known
	gone    bool            // the worker has ended
	folder  *worker.Folder  // of a worker that has; nil when it is missing
	dead    bool            // its estate was taken
	kept    int             // ends in the estate that are not acknowledged
}

func newPeer(r *Remote, path string) *peer {
	return &peer{r: r, path: path, out: workerpb.ServerFrameFromVTPool(), some: make(chan struct{}, 1), leave: make(chan struct{}), over: make(chan struct{})}
}

// push sends what is in out. mu is held.
func (p *peer) push() {
	select {
	case p.some <- struct{}{}:
	default:
	}
}

// pushWithin sends what is in out, within a while. mu is held.
func (p *peer) pushWithin(d time.Duration) {
	due := time.Now().Add(d)
	switch {
	case p.later == nil:
		p.later = time.AfterFunc(d, func() {
			p.r.mu.Lock()
			defer p.r.mu.Unlock()
			p.later = nil
			p.push()
		})
	case due.Before(p.due):
		p.later.Reset(d)
	default:
		return
	}
	p.due = due
}

// frame takes what is to be sent. mu is held.
func (p *peer) frame() (frame *workerpb.ServerFrame) {
	frame, p.out = p.out, workerpb.ServerFrameFromVTPool()
	if p.later != nil {
		p.later.Stop()
		p.later = nil
	}
	return frame
}

// ahead is an amount of orders.
type ahead struct{ n, cores, memory int64 }

// add adds n times an order, which may be unknown (nil), but never gets below zero: what began on
// a former connection was not added.
func (a *ahead) add(o *executor.Order, n int64) {
	a.n = max(a.n+n, 0)
	if o != nil {
		a.cores = max(a.cores+n*o.CPUMillis, 0)
		a.memory = max(a.memory+n*o.MemoryBytes, 0)
	}
	if a.n == 0 {
		*a = ahead{}
	}
}

// order sends an order: at once, or within orderLinger when the worker has more than a few that
// it cannot even begin. mu is held.
func (p *peer) order(o *executor.Order) {
	busy := p.ahead.n > few && (p.ahead.cores >= p.r.cfg.CPUMillis || p.ahead.memory >= p.r.cfg.MemoryBytes)
	p.ahead.add(o, 1)
	p.out.AddOrder(o)
	if busy {
		p.pushWithin(orderLinger)
		return
	}
	p.push()
}

// answered takes off what is ahead an attempt of which the worker says for the first time what
// became of it. mu is held.
func (p *peer) answered(e *entry) {
	if e.stage == unknown {
		p.ahead.add(e.order, -1)
	}
}

// run talks to the worker until that has ended, or ctx has.
func (p *peer) run() {
	defer p.r.work.Done()
	defer close(p.over)
	wait := time.Millisecond
	for {
		synced, _ := p.attach()
		if p.r.ctx.Err() != nil || p.leaving() {
			return
		}
		f, taken := worker.Take(p.path)
		switch {
		case taken == nil && p.process.Lives():
			f.Release() // somebody has removed its lock file
		case taken == nil, errors.Is(taken, fs.ErrNotExist):
			p.end(f)
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
		wait = min(2*wait, slowest)
	}
}

func (p *peer) leaving() bool {
	select {
	case <-p.leave:
		return true
	default:
		return false
	}
}

// end says that the worker is no more.
func (p *peer) end(f *worker.Folder) {
	if p.cmd != nil {
		_ = p.cmd.Wait() // it has let go of its lock: it is gone, or about to
	}
	r := p.r
	r.mu.Lock()
	defer r.unlock()
	p.gone, p.folder = true, f
	if !p.synced && p.cmd != nil {
		r.deaths++ // a folder that was found here says nothing of new workers
	}
	if r.active == p {
		r.active = nil
	}
	if r.state == open && !p.drained {
		r.log.Warn("a worker has ended", p.names()...)
	}
	r.wake()
}

// attach has one connection with the worker, and returns when it is over: whether the
// worker had said all it knows, and what ended it.
func (p *peer) attach() (synced bool, _ error) {
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
	p.frame().ReturnToVTPool() // what was for the former connection
	p.conn, p.listed, p.ahead = conn, map[messages.AttemptKey]bool{}, ahead{}
	p.capacity, p.asked = workerpb.Amount{}, false
	r.unlock()

	sender := make(chan struct{})
	go func() {
		defer close(sender)
		p.send(ctx, stream)
	}()
	err = p.receive(stream)
	cancel()
	<-sender
	r.mu.Lock()
	defer r.unlock()
	synced = p.attached
	p.attached, p.conn, p.listed = false, nil, nil
	return synced, err
}

// attachStream is the server's side of the stream to a worker.
type attachStream = grpc.BidiStreamingClient[workerpb.ServerFrame, workerpb.WorkerFrame]

// send sends what gathers in p.out, until ctx ends or we leave. Then it only closes its
// half of the stream: the worker ends the other one when it has carried out everything
// before. A canceled stream would drop what has not been read at the other end.
func (p *peer) send(ctx context.Context, stream attachStream) {
	for leaving := false; !leaving; {
		select {
		case <-ctx.Done():
			return
		case <-p.leave:
			leaving = true
		case <-p.some:
		}
		// Whoever woke this one often has more to say at once.
		runtime.Gosched()
		p.r.mu.Lock()
		frame := p.frame()
		p.r.mu.Unlock()
		if !frame.IsEmpty() && stream.Send(frame) != nil {
			return // receive learns why
		}
		frame.ReturnToVTPool()
	}
	_ = stream.CloseSend()
}

// errStopped: the worker has ended everything and waits for us to go.
var errStopped = errors.New("worker has stopped")

func (p *peer) receive(stream attachStream) error {
	frame := workerpb.WorkerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		p.r.mu.Lock()
		p.heard = true
		err := p.handle(frame)
		p.r.unlock()
		if err != nil {
			if err != errStopped {
				p.r.log.Error("a worker's frame is not understood", "folder", p.path, "err", err)
			}
			return err
		}
	}
}

// handle takes a frame in, in the order that the protocol says. mu is held.
func (p *peer) handle(frame *workerpb.WorkerFrame) error {
	r := p.r
	if h := frame.Hello; h != nil {
		if name := filepath.Base(p.path); string(h.Name) != name {
			return fmt.Errorf("worker %q answers for %q", h.Name, name)
		}
		p.version, p.pid = string(h.Version), int(h.Pid)
	}
	for _, m := range frame.Queued {
		key := workerpb.KeyOf(m)
		p.list(key)
		r.heardQueued(p, key, m.GrantedAt)
	}
	for _, m := range frame.Started {
		p.list(workerpb.KeyOf(m))
		r.heardStarted(p, m)
	}
	for _, end := range frame.Finished {
		report, err := workerpb.ParseFinished(end)
		if err != nil {
			return err
		}
		p.list(report.Key)
		r.heardFinished(p, report)
	}
	for _, m := range frame.Revoked {
		r.heardRevoked(p, workerpb.KeyOf(m), m.At)
	}
	for _, m := range frame.Ignored {
		r.heardIgnored(p, workerpb.KeyOf(m))
	}
	for _, m := range frame.Postponed {
		r.heardPostponed(p, m)
	}
	if frame.Usage != nil {
		p.usage, p.drained = frame.Usage.Amount(), true
		r.wake()
	}
	if frame.Synced {
		p.sync()
	}
	if frame.Stopped {
		return errStopped
	}
	return nil
}

func (p *peer) list(key messages.AttemptKey) {
	if p.listed != nil {
		p.listed[key] = true
	}
}

// sync compares what the worker knows with what it should, once it has said
// everything, and sends what may have been lost on the way. mu is held.
func (p *peer) sync() {
	r := p.r
	var again []messages.AttemptKey
	for key, e := range r.entries {
		if e.peer != p || e.stage == ended {
			continue
		}
		switch {
		case p.listed[key]:
			if e.killed {
				p.out.AddKill(key, e.grace)
			}
			if e.revoked && e.stage == unknown {
				p.out.AddRevocation(key)
			}
		case e.order == nil:
			delete(r.entries, key)
		case e.killed || e.revoked:
			delete(r.entries, key)
			r.report(revoked(key))
		case p.draining || r.state != open:
			e.peer = nil
		default:
			again = append(again, key)
		}
	}
	r.sort(again)
	for _, key := range again {
		p.order(r.entries[key].order)
	}
	p.out.Drain = p.out.Drain || p.draining
	p.out.Stop = p.out.Stop || r.state == closing
	p.listed, p.attached, p.synced = nil, true, true
	r.deaths = 0
	p.push()
	r.wake()
}
