package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Event is one thing that a stream of events tells; one of its members is set.
type Event struct {
	// ID is where to resume behind what was told so far, as the server said last.
	ID      string       `json:"id,omitempty"`
	Summary *Summary     `json:"summary,omitempty"` // a run at a glance
	Tasks   []TaskChange `json:"tasks,omitempty"`   // of the run that is followed, in their order
	State   *StateChange `json:"state,omitempty"`   // of the run that is followed
	Missed  uint64       `json:"missed,omitempty"`  // so many changes are not told
}

// TaskChange is a task that has moved.
type TaskChange struct {
	Time    Nanos  `json:"time"`
	Task    string `json:"task"`
	State   string `json:"state"`
	Attempt int    `json:"attempt"`      // attempts that it has had
	RC      *int   `json:"rc,omitempty"` // where an attempt has ended
}

// EventOptions say what to tell. A zero member means the default.
type EventOptions struct {
	After     string            // resume behind this ID
	Summaries bool              // Events: no Tasks
	Tag       *string           // RunEvents: only of runs with exactly this tag; nil = any
	Tags      map[string]string // RunEvents: all of these among the run's tags
	// Outage is how long the server may be away (a restart, say); default 30 s,
	// negative for not at all.
	Outage time.Duration
}

// Events tells what changes in a run, as it becomes durable, until the run has
// ended; the last event is its summary. It connects again when the connection
// breaks, and may then tell a change twice. An error is the last thing that it yields.
func (c *Client) Events(ctx context.Context, run uint64, o EventOptions) iter.Seq2[*Event, error] {
	q := url.Values{}
	if o.Summaries {
		q.Set("tasks", "0")
	}
	return c.events(ctx, runPath(run, "events")+query(q), o)
}

// RunEvents tells of runs that change, until the context ends; see Events.
func (c *Client) RunEvents(ctx context.Context, o EventOptions) iter.Seq2[*Event, error] {
	q := url.Values{}
	if o.Tag != nil {
		q.Set("tag", *o.Tag)
	}
	for name, value := range o.Tags {
		q.Set("tags."+name, value)
	}
	return c.events(ctx, "/v1/events"+query(q), o)
}

// errEnded ends a stream after its last event.
var errEnded = errors.New("ended")

func (c *Client) events(ctx context.Context, path string, o EventOptions) iter.Seq2[*Event, error] {
	if o.Outage == 0 {
		o.Outage = 30 * time.Second
	}
	return func(yield func(*Event, error) bool) {
		id := o.After
		heard := time.Now()
		for pause := c.backoff; ; pause = min(2*pause, time.Second) {
			err := c.listen(ctx, path, &id, func(e *Event) bool {
				heard, pause = time.Now(), c.backoff
				return yield(e, nil)
			})
			switch {
			case err == errEnded:
				return
			case ctx.Err() != nil:
				yield(nil, fmt.Errorf("GET %s: %w", path, context.Cause(ctx)))
				return
			case err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnavailable),
				err != nil && time.Since(heard) >= o.Outage:
				yield(nil, err)
				return
			}
			if sleep(ctx, pause) != nil {
				yield(nil, fmt.Errorf("GET %s: %w", path, context.Cause(ctx)))
				return
			}
		}
	}
}

// listen reads one stream. It returns nil when the stream is over and another one
// may be opened, errEnded when there is no more to come.
func (c *Client) listen(ctx context.Context, path string, id *string, yield func(*Event) bool) error {
	k := &call{method: http.MethodGet, path: path, again: true}
	if *id != "" {
		k.header = http.Header{"Last-Event-Id": {*id}}
	}
	resp, err := c.once(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return errEnded
	}
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	follows := strings.HasPrefix(path, "/v1/dagrun/")
	var kind string
	var data []byte
	for {
		line, err := r.ReadSlice('\n')
		whole := line
		for err == bufio.ErrBufferFull {
			whole = append([]byte(nil), whole...)
			line, err = r.ReadSlice('\n')
			whole = append(whole, line...)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return c.transportError(ctx, k, err)
		}
		field, value, _ := strings.Cut(strings.TrimRight(string(whole), "\r\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			*id = value
		case "event":
			kind = value
		case "data":
			data = append(data, value...)
		}
		if len(strings.TrimRight(string(whole), "\r\n")) > 0 || len(data) == 0 {
			continue
		}
		e, err := eventOf(kind, data)
		if err != nil {
			return fmt.Errorf("%s: %s: the event is not what was expected: %w", k, kind, err)
		}
		kind, data = "", data[:0]
		if e == nil {
			continue
		}
		if e.ID = *id; !yield(e) || follows && e.Summary != nil && Final(e.Summary.State) {
			return errEnded
		}
	}
}

// eventOf decodes an event; nil for a kind that this client does not know.
func eventOf(kind string, data []byte) (*Event, error) {
	e := new(Event)
	var err error
	switch kind {
	case "summary", "run":
		e.Summary = new(Summary)
		err = json.Unmarshal(data, e.Summary)
	case "tasks":
		err = json.Unmarshal(data, &e.Tasks)
	case "state":
		e.State = new(StateChange)
		err = json.Unmarshal(data, e.State)
	case "gap":
		var gap struct{ Missed uint64 }
		err = json.Unmarshal(data, &gap)
		e.Missed = gap.Missed
	default:
		return nil, nil
	}
	return e, err
}
