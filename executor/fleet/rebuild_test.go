package fleet

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestRebuiltRunHearsOfItsPresentOrders: a run is rebuilt while the end of one attempt is in the sink, and that
// of another one waits behind it. ExpectResume returns after the sink, and what waits is dropped: both ends
// are repeated once the run orders the attempts again.
func TestRebuiltRunHearsOfItsPresentOrders(t *testing.T) {
	c := newTestCluster(t, "a")
	a := c.nodes[0]
	first, second := testKey(1), testKey(2)
	a.lead(4)
	a.order(first)
	a.order(second)
	eventually(t, "the orders come", func() bool { return a.workers.startsOf(first)+a.workers.startsOf(second) == 2 })
	a.workers.begin(first)
	a.workers.begin(second)
	a.awaitHeard(first, "started")
	a.awaitHeard(second, "started")

	a.mu.Lock() // the sink waits
	a.workers.end(first, messages.AttemptSucceeded)
	eventually(t, "the end is in the sink", func() bool {
		a.Fleet.mu.Lock()
		defer a.Fleet.mu.Unlock()
		return a.delivering && len(a.undelivered) == 0 && a.leads[1].table.attempts[first].end != nil
	})
	a.workers.end(second, messages.AttemptSucceeded)
	// The connection waits for the sink, too: so a report of its own stands for what others would queue.
	a.Fleet.mu.Lock()
	a.queueReport(executor.Report{Key: second, Kind: executor.Finished, At: 8})
	a.Fleet.mu.Unlock()
	rebuilt := make(chan struct{})
	go func() {
		a.ExpectResume(testRun)
		close(rebuilt)
	}()
	select {
	case <-rebuilt:
		t.Error("ExpectResume has returned, and a report of a former order is on its way")
	case <-time.After(100 * time.Millisecond):
	}
	a.mu.Unlock()
	testenv.Receive(t, "ExpectResume returns", rebuilt)
	a.awaitHeard(first, "started", "succeeded")
	a.awaitHeard(second, "started")

	for _, key := range []messages.AttemptKey{first, second} {
		a.Start(executor.Order{Key: key, GrantedAt: 5, Resume: true})
	}
	a.awaitHeard(first, "started", "succeeded", "started", "succeeded")
	a.awaitHeard(second, "started", "started", "succeeded")
	a.ResumeDone(testRun)
}
