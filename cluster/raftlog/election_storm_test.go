package raftlog_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
)

// slowHandshakes are dials that share one processor, which works on each of them for a step in turn:
// n at once take n times as long.
type slowHandshakes struct {
	network   *raftlogtest.Network
	processor chan struct{} // holds one; those who wait get it in their order
	steps     int
	step      time.Duration

	mu       sync.Mutex
	underway map[string]int // by link
	most     int            // of one link
	ended    int            // by their limits
}

func (s *slowHandshakes) dial(from raftlog.NodeID) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		s.count(string(from)+to, 1)
		defer s.count(string(from)+to, -1)
		for range s.steps {
			select {
			case s.processor <- struct{}{}:
			case <-ctx.Done():
				s.mu.Lock()
				s.ended++
				s.mu.Unlock()
				return nil, ctx.Err()
			}
			<-time.After(s.step)
			<-s.processor
		}
		return s.network.Dial(from)(ctx, to)
	}
}

func (s *slowHandshakes) count(link string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway[link] += n
	s.most = max(s.most, s.underway[link])
}

// TestElectionsOverSlowHandshakes: six groups on three nodes elect leaders although handshakes are so
// slow that those of one election of all groups, made at once, would take longer than a request
// waits. The time is that of a bubble, so the test does not depend on the machine.
func TestElectionsOverSlowHandshakes(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const groups = 6
		settings := raftlog.DefaultSettings()
		settings.SegmentBytes = 16 << 10
		handshakes := &slowHandshakes{network: raftlogtest.NewNetwork(), processor: make(chan struct{}, 1),
			steps: 25, step: 10 * time.Millisecond, underway: map[string]int{}}
		if all := time.Duration(groups*3*2*handshakes.steps) * handshakes.step; all < settings.Request*3/2 {
			t.Fatalf("the handshakes of an election take %v: not long", all)
		}
		ids := []raftlog.NodeID{"n1", "n2", "n3"}
		var opened [groups][]*raftlog.Group
		for _, id := range ids {
			mux, err := raftlog.NewMux(raftlog.MuxConfig{Listener: handshakes.network.Listen(id), Resolve: handshakes.network.Resolve,
				Dial: handshakes.dial(id), Logger: testLogger()})
			if err != nil {
				t.Fatal(err)
			}
			defer mux.Close()
			for number := range groups {
				place := filepath.Join(dir, string(id), fmt.Sprint(number))
				machine, err := raftlogtest.OpenMachine(filepath.Join(place, "rows"))
				if err != nil {
					t.Fatal(err)
				}
				g, err := raftlog.Open(raftlog.Config{Group: uint16(number), Node: id, Dir: filepath.Join(place, "group"), Machine: machine,
					Mux: mux, Bootstrap: ids, Settings: settings, Logger: testLogger()})
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := g.Close(); err != nil {
						t.Error(err)
					}
				}()
				opened[number] = append(opened[number], g)
			}
		}
		led := func() (n int) {
			for _, replicas := range opened {
				for i, g := range replicas {
					if node, _, ok := g.Leader(); ok && node == ids[i] {
						n++
						break
					}
				}
			}
			return n
		}
		began := time.Now()
		for led() < groups && time.Since(began) < time.Minute {
			<-time.After(100 * time.Millisecond)
		}
		handshakes.mu.Lock()
		defer handshakes.mu.Unlock()
		t.Logf("after %v %d of %d groups have leaders; %d handshakes at once to one node, %d ended by their limits",
			time.Since(began), led(), groups, handshakes.most, handshakes.ended)
		if led() < groups {
			t.Error("groups have no leaders")
		}
		if handshakes.most > raftlog.MaxLateDials {
			t.Errorf("%d handshakes at once to one node: more than %d", handshakes.most, raftlog.MaxLateDials)
		}
	})
}

// TestOldVotesDoNotWait: while a node does not answer, only the vote of the newest election waits for a connection
// to it.
func TestOldVotesDoNotWait(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		network, settings := raftlogtest.NewNetwork(), raftlog.DefaultSettings()
		mux, err := raftlog.NewMux(raftlog.MuxConfig{Listener: network.Listen("n1"), Resolve: network.Resolve, Logger: testLogger(),
			Dial: func(ctx context.Context, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
		if err != nil {
			t.Fatal(err)
		}
		defer mux.Close()
		machine, err := raftlogtest.OpenMachine(filepath.Join(dir, "rows"))
		if err != nil {
			t.Fatal(err)
		}
		g, err := raftlog.Open(raftlog.Config{Group: 1, Node: "n1", Dir: filepath.Join(dir, "group"), Machine: machine,
			Mux: mux, Bootstrap: []raftlog.NodeID{"n1", "n2", "n3"}, Settings: settings, Logger: testLogger()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}()
		most := 0
		for range 600 {
			<-time.After(100 * time.Millisecond)
			synctest.Wait()
			most = max(most, mux.ConnRequests("n2"))
		}
		if most != 1 {
			t.Errorf("%d votes wait at once, want one", most)
		}
	})
}
