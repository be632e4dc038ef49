package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
)

// Client makes calls that are recorded. Its calls go to the node that each names, are not repeated,
// and take CallLimit at most. A client is used by one goroutine.
type Client struct {
	cluster   *Cluster
	number    int
	CallLimit time.Duration
	nodes     map[string]*client.Client
	transport map[string]*http.Client
}

// NewClient returns a client with a number, which names it in the history. The caller closes it.
func (c *Cluster) NewClient(number int) *Client {
	return &Client{cluster: c, number: number, CallLimit: 5 * time.Second,
		nodes: map[string]*client.Client{}, transport: map[string]*http.Client{}}
}

// Close closes the connections of the client.
func (c *Client) Close() {
	for _, t := range c.transport {
		t.CloseIdleConnections()
	}
}

// apiOf returns the API client of a node. It does not repeat calls: a repetition is a call of its own.
func (c *Client) apiOf(node string) *client.Client {
	if known := c.nodes[node]; known != nil {
		return known
	}
	c.transport[node] = c.cluster.HTTPClient(node)
	api, err := client.New(client.Config{Server: c.cluster.Node(node).URL(), HTTPClient: c.transport[node], Retries: -1})
	if err != nil {
		panic("clustertest: " + err.Error()) // the address is the harness's own
	}
	c.nodes[node] = api
	return api
}

// recordCall makes a call and notes its times and its outcome. The time of the call is taken before
// the first byte is sent, and that of the return after the last one was read: the call took effect
// between them, if it was acknowledged. Connecting belongs to the call. A call that takes longer than
// CallLimit is given up, and its outcome is unknown.
func (c *Client) recordCall(o history.Operation, call func(context.Context, *client.Client) (fill func(*history.Operation), err error)) error {
	o.Client = c.number
	api := c.apiOf(o.Node)
	ctx, cancel := context.WithTimeout(context.Background(), c.CallLimit)
	defer cancel()
	pending := c.cluster.Recorder.Begin(o)
	fill, err := call(ctx, api)
	pending.End(func(o *history.Operation) {
		if o.Outcome = OutcomeOf(err); err != nil {
			o.Error = err.Error()
		} else if fill != nil {
			fill(o)
		}
	})
	return err
}

// OutcomeOf tells what a client may conclude from the error of a call.
//
//	nil                             took effect
//	404, 409                        no effect, and a statement about the run
//	422                             no effect: another document has the key
//	other 4xx, no connection        no effect
//	503                             no effect, except what says otherwise: the type outcome-unknown, a
//	                                storage that failed, a call that ended before the engine's answer
//	everything else                 may have taken effect
func OutcomeOf(err error) history.Outcome {
	var refused *client.Error
	switch {
	case err == nil:
		return history.Acknowledged
	case errors.Is(err, client.ErrNoServer):
		return history.Rejected
	case !errors.As(err, &refused):
		return history.Unknown
	}
	switch refused.Status {
	case http.StatusNotFound:
		return history.NotFound
	case http.StatusConflict:
		return history.Conflict
	case http.StatusUnprocessableEntity:
		return history.KeyReused
	case http.StatusServiceUnavailable:
		text := refused.Error()
		if refused.Type == "outcome-unknown" || strings.Contains(text, "storage") || strings.Contains(text, "may still take effect") {
			return history.Unknown
		}
		return history.Rejected
	}
	if refused.Status/100 == 4 {
		return history.Rejected
	}
	return history.Unknown
}

// Submit submits a document; key is "" or an idempotency key.
func (c *Client) Submit(node string, d Document, key string) (run uint64, err error) {
	err = c.recordCall(history.Operation{Node: node, Kind: history.Submit, Tag: d.Tag, Key: key},
		func(ctx context.Context, api *client.Client) (func(*history.Operation), error) {
			run, err = api.Submit(ctx, d.JSON, client.SubmitOptions{IdempotencyKey: key})
			return func(o *history.Operation) { o.Run = run }, err
		})
	return run, err
}

// State reads the state of a run.
func (c *Client) State(node string, run uint64) (state string, err error) {
	err = c.recordCall(history.Operation{Node: node, Kind: history.Read, Run: run},
		func(ctx context.Context, api *client.Client) (func(*history.Operation), error) {
			state, err = api.State(ctx, run)
			return func(o *history.Operation) { o.State = state }, err
		})
	return state, err
}

// SetState changes the state of a run, as a PATCH; KILLED is a DELETE.
func (c *Client) SetState(node string, run uint64, state string) error {
	return c.recordCall(history.Operation{Node: node, Kind: history.Change, Run: run, State: state},
		func(ctx context.Context, api *client.Client) (func(*history.Operation), error) {
			if state == client.Killed {
				return nil, api.Kill(ctx, run)
			}
			return nil, api.SetState(ctx, run, state)
		})
}

// List reads all pages of the list of runs.
func (c *Client) List(node string) (listed []history.ListedRun, err error) {
	err = c.recordCall(history.Operation{Node: node, Kind: history.List},
		func(ctx context.Context, api *client.Client) (func(*history.Operation), error) {
			listed = nil
			for s, err := range api.Runs(ctx, client.ListOptions{All: true}) {
				if err != nil {
					return nil, err
				}
				listed = append(listed, history.ListedRun{Run: s.RunID, Tag: s.Tag, State: s.State})
			}
			return func(o *history.Operation) { o.Listed = listed }, nil
		})
	return listed, err
}

// Follow reads the events of a run from its begin until the run has ended, over as many connections
// as it needs, each to the next of the nodes. It records the stream also when the context ends.
func (c *Client) Follow(ctx context.Context, run uint64, nodes ...string) error {
	s := history.Stream{Client: c.number, Run: run, FromStart: true}
	defer func() { c.cluster.Recorder.AddStream(s) }()
	position := "0"
	for connection := 0; ; connection++ {
		if connection > 0 {
			s.Events = append(s.Events, history.Event{ID: lastID(s.Events), Resumed: true})
			sleepContext(ctx, 20*time.Millisecond)
		}
		api := c.apiOf(nodes[connection%len(nodes)])
		var failure error
		for e, err := range api.Events(ctx, run, client.EventOptions{After: position, Outage: -1}) {
			if err != nil {
				failure = err
				break
			}
			event, err := convertEvent(e)
			if err != nil {
				return err
			}
			if e.ID != "" {
				position = e.ID
			}
			s.Events = append(s.Events, event)
			if e.Summary != nil && client.Final(e.Summary.State) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if outcome := OutcomeOf(failure); failure != nil && outcome != history.Unknown && outcome != history.Rejected {
			return failure
		}
	}
}

// lastID returns the position at which a stream broke off.
func lastID(events []history.Event) uint64 {
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].ID
}

// convertEvent makes an event of the history. IDs are numbers of commits, which must not go back.
func convertEvent(e *client.Event) (history.Event, error) {
	event := history.Event{Missed: e.Missed}
	if e.ID != "" {
		if _, err := fmt.Sscan(e.ID, &event.ID); err != nil {
			return event, fmt.Errorf("event ID %q: %w", e.ID, err)
		}
	}
	switch {
	case e.Summary != nil:
		event.State = e.Summary.State
	case e.State != nil:
		event.State = e.State.State
	}
	for _, t := range e.Tasks {
		event.Tasks = append(event.Tasks, history.TaskChange{Task: t.Task, State: t.State, Attempt: t.Attempt})
	}
	return event, nil
}

// Document is a graph to submit.
type Document struct {
	Tag  string
	JSON []byte
}

// Task is a task of a Document.
type Task struct {
	Body       string // script for /bin/sh; "" makes a no-op task, which has no process and no marks
	Parents    []string
	MaxRetries int
	Cores      int // that a process takes; 0 is the default of the service
}

// NewDocument makes a document whose tag no other document has. Its processes write their marks, with
// a sign of life every 0.1 s, and its edges become a part of the history.
func (c *Cluster) NewDocument(tag string, tasks map[string]Task) Document {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parents[tag] != nil {
		panic(fmt.Sprintf("clustertest: there are two documents with the tag %q", tag))
	}
	c.parents[tag] = map[string][]string{}
	all := map[string]any{}
	for name, t := range tasks {
		job := map[string]any{"executor": "noop"}
		if t.Body != "" {
			job = map[string]any{"commandString": history.Script(c.marksFile(), "0.1", t.Body)}
		}
		if t.Cores > 0 {
			job["cores"] = t.Cores
		}
		task := map[string]any{"job": job, "maxRetries": t.MaxRetries}
		if len(t.Parents) > 0 {
			task["parents"] = t.Parents
			// A no-op task writes no marks, so the rule could not see its end.
			for _, parent := range t.Parents {
				if t.Body != "" && tasks[parent].Body != "" {
					c.parents[tag][name] = append(c.parents[tag][name], parent)
				}
			}
		}
		all[name] = task
	}
	text, err := json.Marshal(map[string]any{"tag": tag, "tasks": all})
	if err != nil {
		panic("clustertest: " + err.Error())
	}
	return Document{tag, text}
}
