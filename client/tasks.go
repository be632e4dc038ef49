package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// Task returns the definition of one expanded task.
func (c *Client) Task(ctx context.Context, run uint64, name string) (*Task, error) {
	out := new(Task)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: runPath(run, "task", name), isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// TaskState returns the state of one task.
func (c *Client) TaskState(ctx context.Context, run uint64, name string) (string, error) {
	return c.getState(ctx, runPath(run, "task", name, "state"))
}

// KillTask kills one task. It returns when the intent is durable.
func (c *Client) KillTask(ctx context.Context, run uint64, name string) error {
	return c.callJSON(ctx, &call{method: http.MethodDelete, path: runPath(run, "task", name), isRepeatable: true}, nil)
}

// TaskOptions select tasks of a run.
type TaskOptions struct {
	States []string // any of these; empty = all
	Limit  int      // size of a page, up to 10,000; 0 = the server's default
	Cursor string   // Next of the previous page
}

// TaskStatus is one task in a page: its state and its attempts.
type TaskStatus struct {
	Name     string    `json:"name"`
	State    string    `json:"state"`
	Attempts []Attempt `json:"attempts"`
}

// TaskPage is a page of the tasks of a run, in the order of the plan.
type TaskPage struct {
	Tasks []TaskStatus `json:"tasks"`
	Next  string       `json:"next"` // Cursor of the next page; "" when this is the last one
}

// Tasks returns a page of a run's tasks.
func (c *Client) Tasks(ctx context.Context, run uint64, o TaskOptions) (*TaskPage, error) {
	q := url.Values{}
	setPageParameters(q, o.States, o.Limit, o.Cursor)
	out := new(TaskPage)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: runPath(run, "tasks") + encodeQuery(q), isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// AllTasks yields the tasks of a run, page by page; o.Limit is the size of a page. An error is
// the last value.
func (c *Client) AllTasks(ctx context.Context, run uint64, o TaskOptions) iter.Seq2[*TaskStatus, error] {
	if o.Limit == 0 {
		o.Limit = pageSize
	}
	return func(yield func(*TaskStatus, error) bool) {
		for {
			page, err := c.Tasks(ctx, run, o)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Tasks {
				if !yield(&page.Tasks[i], nil) {
					return
				}
			}
			if page.Next == "" || page.Next == o.Cursor {
				return
			}
			o.Cursor = page.Next
		}
	}
}

// Streams of an attempt's output.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// LogOptions select what is read of a task's output.
type LogOptions struct {
	Attempt int    // 1, 2, …; 0 = the latest
	Stream  string // Stdout (also "") or Stderr
	Follow  bool   // go on while the attempt runs
	Offset  int64  // where to begin, counted in what the task wrote
}

// Log returns the raw output of an attempt. A marker line replaces bytes that were not kept. With
// Follow it ends when the attempt ends, or with the context. A server that stops during that is
// an ErrUnreachable. The caller closes it.
func (c *Client) Log(ctx context.Context, run uint64, name string, o LogOptions) (io.ReadCloser, error) {
	q := url.Values{}
	if o.Attempt > 0 {
		q.Set("attempt", strconv.Itoa(o.Attempt))
	}
	if o.Stream != "" {
		q.Set("stream", o.Stream)
	}
	if o.Follow {
		q.Set("follow", "1")
	}
	if o.Offset > 0 {
		q.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	k := &call{method: http.MethodGet, path: runPath(run, "task", name, "log") + encodeQuery(q), isRepeatable: true}
	resp, err := c.sendWithRetries(ctx, k)
	if err != nil {
		return nil, err
	}
	return &errorStream{c: c, ctx: ctx, k: k, body: resp.Body}, nil
}
