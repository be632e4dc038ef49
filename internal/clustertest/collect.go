package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
)

// marksFile is where the processes of tasks write their marks. It lies on the disk of this machine,
// so no fault of a node reaches it.
func (c *Cluster) marksFile() string { return filepath.Join(c.base, "marks") }

// SetLease tells how long a worker may go on without a leader (Options.Arguments gives the same time
// to the nodes). Default: attempts never overlap.
func (c *Cluster) SetLease(lease time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lease = lease
}

// History returns what is known so far. The records are read from one node, which must be ready.
// digests are those of all replicas, or nil.
//
// Call it when the clients have ended and the cluster has recovered: a change after the records were
// read would look like one that the service has forgotten.
func (c *Cluster) History(node string, digests []history.Digest) (*history.History, error) {
	records, err := c.readRecords(node)
	if err != nil {
		return nil, err
	}
	h := c.Recorder.History()
	h.Records, h.Digests = records, digests
	text, err := os.ReadFile(c.marksFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if h.Marks, err = history.ParseMarks(string(text)); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.Parents = map[string]map[string][]string{}
	for tag, edges := range c.parents {
		h.Parents[tag] = edges
	}
	h.Lease, h.Interruptions = c.lease, slices.Clone(c.interruptions)
	return h, nil
}

// readRecords reads the documents of all runs. Its calls are not recorded: they belong to no moment of
// the round.
func (c *Cluster) readRecords(node string) (records []history.Record, err error) {
	reader := c.NewClient(-1)
	defer reader.Close()
	api := reader.apiOf(node)
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	for s, err := range api.Runs(ctx, client.ListOptions{All: true}) {
		if err != nil {
			return nil, fmt.Errorf("read the records of all runs from node %s: %w", node, err)
		}
		run, err := api.Get(ctx, s.RunID)
		if err != nil {
			return nil, fmt.Errorf("read the record of run %d from node %s: %w", s.RunID, node, err)
		}
		records = append(records, recordOf(run))
	}
	return records, nil
}

func recordOf(run *client.Run) history.Record {
	r := history.Record{Run: run.RunID, Tag: run.Tag, TaskStates: run.TaskStates, Attempts: map[string][]history.Attempt{}}
	for _, s := range run.DagStateChanges {
		r.StateChanges = append(r.StateChanges, history.StateChange{Nanos: int64(s.Time), State: s.State})
	}
	for task, attempts := range run.TaskAttempts {
		for _, a := range attempts {
			r.Attempts[task] = append(r.Attempts[task], history.Attempt{Number: a.Attempt, RC: a.RC})
		}
	}
	return r
}

// AwaitFinished waits until a node lists no unfinished runs, or returns an error that names one. It
// does not record its reads.
func (c *Cluster) AwaitFinished(node string, limit time.Duration) error {
	waiter := c.NewClient(-1)
	defer waiter.Close()
	api := waiter.apiOf(node)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		unfinished, err := "", error(nil)
		var s *client.Summary
		for s, err = range api.Runs(ctx, client.ListOptions{}) {
			if err != nil {
				break
			}
			unfinished = fmt.Sprintf("run %d (%s) is %s", s.RunID, s.Tag, s.State)
		}
		if err == nil && unfinished == "" {
			return nil
		}
		sleepContext(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("after %v at node %s: %s (%w)", limit, node, unfinished, errors.Join(err, ctx.Err()))
		}
	}
}

// Check collects the history and fails the test for each violation. The history of a failed round is
// stored in a file, for `go test ./internal/clustertest/history -run TestStoredHistory -history FILE`.
func (c *Cluster) Check(node string, digests []history.Digest, options history.Options) *history.History {
	c.t.Helper()
	h, err := c.History(node, digests)
	if err != nil {
		c.t.Fatal(err)
	}
	violations := history.Check(h, options)
	for i, v := range violations {
		if i == maxViolations {
			c.t.Errorf("and %d other violations", len(violations)-i)
			break
		}
		c.t.Error(v)
	}
	if len(violations) > 0 {
		c.t.Logf("the history is stored in %s", storeHistory(h))
	}
	return h
}

// maxViolations bounds how many violations a test shows: the stored history has all.
const maxViolations = 20

// storeHistory writes a history to a file that outlives the test, and returns its path or the error.
func storeHistory(h *history.History) string {
	text, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return err.Error()
	}
	f, err := os.CreateTemp("", "caravan-history-*.json")
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err.Error()
	}
	return f.Name()
}
