package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errNoAnswer = errors.New("no answer")

// dialRig is the dialer of a node whose dials a test decides.
type dialRig struct {
	*dialer
	stop   context.CancelFunc
	begun  atomic.Int64
	opened atomic.Int64 // connections that are open
}

// newDialRig returns a dialer and the function that closes it and expects that no connection is left
// open.
func newDialRig(t *testing.T, connect func(ctx context.Context, node NodeID) error) (*dialRig, func()) {
	ctx, stop := context.WithCancel(context.Background())
	r := &dialRig{stop: stop}
	r.dialer = &dialer{ctx: ctx, nodes: map[NodeID]*nodeDials{}, connect: func(ctx context.Context, node NodeID) (net.Conn, error) {
		r.begun.Add(1)
		if err := connect(ctx, node); err != nil {
			return nil, err
		}
		conn, _ := net.Pipe()
		r.opened.Add(1)
		return &countedConn{Conn: conn, open: &r.opened}, nil
	}}
	return r, func() {
		stop()
		r.close()
		synctest.Wait()
		if open := r.opened.Load(); open != 0 {
			t.Errorf("%d connections are open at the end", open)
		}
	}
}

type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

// Close closes the connection.
func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func newTestStream() *groupStream { return &groupStream{closed: make(chan struct{})} }

// after waits for a time, or returns the error of an earlier end.
func after(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestDialOutlivesItsRequest: a handshake goes on when the request ends that began it, and serves the
// next one; a connection that comes when no request waits is kept for a moment, then closed.
func TestDialOutlivesItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, end := newDialRig(t, func(ctx context.Context, _ NodeID) error { return after(ctx, 3*time.Second) })
		defer end()
		began, g := time.Now(), newTestStream()
		if _, _, err := r.request(g, "n2", 500*time.Millisecond); err == nil || time.Since(began) != 500*time.Millisecond {
			t.Errorf("the first request ends after %v with %v", time.Since(began), err)
		}
		conn, isSpare, err := r.request(newTestStream(), "n2", 5*time.Second)
		if err != nil || isSpare || time.Since(began) != 3*time.Second {
			t.Fatalf("the second request ends after %v: %v, spare %v", time.Since(began), err, isSpare)
		}
		conn.Close()
		<-time.After(2 * time.Second) // the late dials that the second request began have ended
		conn, isSpare, err = r.request(g, "n2", time.Millisecond)
		if err != nil || !isSpare {
			t.Fatalf("the connection that nobody waited for: %v, spare %v", err, isSpare)
		}
		conn.Close()
		if _, _, err := r.request(g, "n2", time.Millisecond); err == nil {
			t.Error("there was a second spare")
		}
		<-time.After(10 * time.Second)
		if open, nodes := r.opened.Load(), len(r.nodes); open != 0 || nodes != 0 {
			t.Errorf("later %d connections are open, and %d nodes are known", open, nodes)
		}
	})
}

// TestDialsToANodeAreFew: however many requests wait for a node, few dials are under way, and each
// serves one. A node that does not answer delays no other.
func TestDialsToANodeAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var underway, most atomic.Int64
		r, end := newDialRig(t, func(ctx context.Context, node NodeID) error {
			if node == "dead" {
				return after(ctx, time.Hour)
			}
			most.Store(max(most.Load(), underway.Add(1)))
			defer underway.Add(-1)
			return after(ctx, 100*time.Millisecond)
		})
		defer end()
		began := time.Now()
		var wait sync.WaitGroup
		for range 20 {
			wait.Go(func() {
				if _, _, err := r.request(newTestStream(), "dead", 5*time.Second); err == nil {
					t.Error("a dead node answers")
				}
			})
			wait.Go(func() {
				conn, _, err := r.request(newTestStream(), "n2", 5*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
				if late := time.Since(began); late > time.Second {
					t.Errorf("a connection comes after %v", late)
				}
			})
		}
		wait.Wait()
		if n := r.begun.Load(); n != 20+maxLateDials {
			t.Errorf("%d dials, want one for each request and %d to the dead node", n, maxLateDials)
		}
		if most.Load() != maxDials {
			t.Errorf("%d dials were under way", most.Load())
		}
	})
}

// TestFailedDialFailsOlderRequests: an error is the answer to the requests that are older than the
// dial. A request that came meanwhile gets a dial of its own, as the node may have come back.
func TestFailedDialFailsOlderRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var isBack atomic.Bool
		r, end := newDialRig(t, func(ctx context.Context, _ NodeID) error {
			if isBack.Load() {
				return nil
			}
			if err := after(ctx, 500*time.Millisecond); err != nil {
				return err
			}
			return errNoAnswer
		})
		defer end()
		var wait sync.WaitGroup
		for range maxDials {
			wait.Go(func() {
				if _, _, err := r.request(newTestStream(), "n2", 5*time.Second); !errors.Is(err, errNoAnswer) {
					t.Errorf("an older request: %v", err)
				}
			})
		}
		<-time.After(400 * time.Millisecond)
		isBack.Store(true)
		wait.Go(func() {
			conn, _, err := r.request(newTestStream(), "n2", 5*time.Second)
			if err != nil {
				t.Errorf("the later request: %v", err)
				return
			}
			conn.Close()
		})
		wait.Wait()
	})
}

// TestRequestsEndEarly: a request ends with its group, with a newer vote and with the Mux, and leaves
// its dial to the others.
func TestRequestsEndEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, end := newDialRig(t, func(ctx context.Context, node NodeID) error {
			if node == "dead" {
				return after(ctx, time.Hour)
			}
			return after(ctx, 500*time.Millisecond)
		})
		defer end()
		closing, voting, other := newTestStream(), newTestStream(), newTestStream()
		errs := map[string]chan error{}
		ask := func(who string, g *groupStream, node NodeID) {
			errs[who] = make(chan error, 1)
			go func() {
				conn, _, err := r.request(g, node, 5*time.Second)
				if err == nil {
					conn.Close()
				}
				errs[who] <- err
			}()
			synctest.Wait()
		}
		ask("closing", closing, "n2")
		ask("voting", voting, "n2")
		ask("other", other, "n2")
		ask("of another node", voting, "dead")
		close(closing.closed)
		if err := <-errs["closing"]; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the request of a closed group: %v", err)
		}
		r.dropRequests(voting, "n2", errNewerVote)
		if err := <-errs["voting"]; !errors.Is(err, errNewerVote) {
			t.Errorf("the request of an old vote: %v", err)
		}
		if err := <-errs["other"]; err != nil {
			t.Errorf("the request of another group: %v", err)
		}
		if n := r.begun.Load(); n != maxDials+1 {
			t.Errorf("%d dials", n)
		}
		r.stop()
		r.close()
		if err := <-errs["of another node"]; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a request when the Mux closes: %v", err)
		}
		synctest.Wait()
		if _, _, err := r.request(other, "n2", time.Second); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a request after the end: %v", err)
		}
	})
}

// TestDialsAtRandom: whatever becomes of requests, groups and dials, each request ends in its time,
// no connection is lost, and nothing is kept of a node that is at rest.
func TestDialsAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			var random sync.Mutex
			source := rand.New(rand.NewPCG(seed, 1))
			below := func(n int64) time.Duration {
				random.Lock()
				defer random.Unlock()
				return time.Duration(source.Int64N(n))
			}
			r, end := newDialRig(t, func(ctx context.Context, _ NodeID) error {
				if err := after(ctx, below(int64(3*time.Second))); err != nil {
					return err
				}
				if below(3) == 0 {
					return errNoAnswer
				}
				return nil
			})
			var wait sync.WaitGroup
			for range 12 {
				g := newTestStream()
				wait.Go(func() {
					<-time.After(below(int64(30 * time.Second)))
					close(g.closed)
				})
				for range 4 {
					wait.Go(func() {
						for range 10 {
							limit, began := below(int64(4*time.Second)), time.Now()
							node := NodeID(fmt.Sprint("n", int64(below(2))))
							if below(4) == 0 {
								r.dropRequests(g, node, errNewerVote)
							}
							conn, _, err := r.request(g, node, limit)
							if late := time.Since(began) - limit; late > 0 {
								t.Errorf("a request ends %v after its limit, with %v", late, err)
							}
							if err == nil {
								conn.Close()
							}
							<-time.After(below(int64(time.Second)))
						}
					})
				}
			}
			if seed%2 == 0 { // the end finds requests and dials
				<-time.After(below(int64(20 * time.Second)))
				end()
				wait.Wait()
				return
			}
			wait.Wait()
			<-time.After(dialLimit + spareLimit)
			synctest.Wait()
			r.mu.Lock()
			if len(r.nodes) != 0 {
				t.Errorf("seed %d: %d nodes are known at rest", seed, len(r.nodes))
			}
			r.mu.Unlock()
			end()
		})
	}
}

// TestClosedSpareIsReplaced: a spare that the other side has closed costs a request a dial, not its
// success.
func TestClosedSpareIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var far []net.Conn // in the order of the dials
		m := &Mux{}
		ctx, stop := context.WithCancel(context.Background())
		m.dialer = dialer{ctx: ctx, nodes: map[NodeID]*nodeDials{}, connect: func(context.Context, NodeID) (net.Conn, error) {
			near, other := net.Pipe()
			far = append(far, other)
			if len(far) == 1 {
				return near, after(ctx, 100*time.Millisecond)
			}
			go func() {
				_, _ = io.ReadFull(other, make([]byte, 2))
				_, _ = other.Write([]byte{groupAccepted})
			}()
			return near, nil
		}}
		g := &groupStream{mux: m, closed: make(chan struct{}), conns: map[*groupConn]struct{}{}}
		if _, err := g.Dial("n2", time.Millisecond); err == nil {
			t.Error("a request does not end in its time")
		}
		<-time.After(time.Second)
		far[0].Close()
		conn, err := g.Dial("n2", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(far) != 2 {
			t.Errorf("%d dials", len(far))
		}
		conn.Close()
		far[1].Close()
		stop()
		m.dialer.close()
	})
}
