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

// Two ways to follow a run: Events is a stream, for each change of its tasks. Wait asks for the summary
// again and again, and lets the server wait for a change of the state (a long poll) in between; it is
// for callers that want the end, and works through proxies that do not pass on streams.

// Event is one event of a stream. One of its members besides ID is set.
type Event struct {
	// ID is the position to resume after, as the server last sent it.
	ID      string       `json:"id,omitempty"`
	Summary *Summary     `json:"summary,omitempty"` // a run at a glance
	Tasks   []TaskChange `json:"tasks,omitempty"`   // of the run that is followed, in their order
	State   *StateChange `json:"state,omitempty"`   // of the run that is followed
	Missed  uint64       `json:"missed,omitempty"`  // number of changes that were dropped
}

// TaskChange is a task with a new state.
type TaskChange struct {
	Time    Nanos  `json:"time"`
	Task    string `json:"task"`
	State   string `json:"state"`
	Attempt int    `json:"attempt"`      // number of its attempts
	RC      *int   `json:"rc,omitempty"` // set when an attempt has ended
}

// EventOptions select events. A zero member means the default.
type EventOptions struct {
	After     string            // resume after this ID
	Summaries bool              // Events: no Tasks
	Tag       *string           // RunEvents: only of runs with exactly this tag; nil = any
	Tags      map[string]string // RunEvents: all of these among the run's tags
	// Outage is how long the server may be away (a restart, say); default 30 s, negative for not at
	// all. It counts from the end of the last stream that had a line.
	Outage time.Duration
}

// Events yields the changes of a run, each when it is durable, until the run has ended. The last
// event is its summary. Events connects again when the connection breaks, and may then yield a
// change twice. An error is the last value.
func (c *Client) Events(ctx context.Context, run uint64, o EventOptions) iter.Seq2[*Event, error] {
	q := url.Values{}
	if o.Summaries {
		q.Set("tasks", "0")
	}
	return c.readEvents(ctx, runPath(run, "events")+encodeQuery(q), o)
}

// RunEvents yields the runs that change, until the context ends; see Events.
func (c *Client) RunEvents(ctx context.Context, o EventOptions) iter.Seq2[*Event, error] {
	q := url.Values{}
	if o.Tag != nil {
		q.Set("tag", *o.Tag)
	}
	for name, value := range o.Tags {
		q.Set("tags."+name, value)
	}
	return c.readEvents(ctx, "/v1/events"+encodeQuery(q), o)
}

// errEnded ends a stream after its last event.
var errEnded = errors.New("ended")

// readEvents reads one stream after another from the last ID on, until an event is the last one. A
// refusal other than 502, 503 and 504 ends it at once.
func (c *Client) readEvents(ctx context.Context, path string, o EventOptions) iter.Seq2[*Event, error] {
	if o.Outage == 0 {
		o.Outage = 30 * time.Second
	}
	return func(yield func(*Event, error) bool) {
		id := o.After
		awaySince := time.Now() // the end of the last stream that had a line: an event, or a heartbeat
		for pause := c.backoff; ; pause = min(2*pause, time.Second) {
			heard := false
			err := c.readStream(ctx, path, &id, &heard, func(e *Event) bool { return yield(e, nil) })
			if heard {
				awaySince, pause = time.Now(), c.backoff
			}
			switch {
			case err == errEnded:
				return
			case ctx.Err() != nil:
				yield(nil, fmt.Errorf("GET %s: %w", path, context.Cause(ctx)))
				return
			case err != nil && !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnavailable),
				err != nil && time.Since(awaySince) >= o.Outage:
				yield(nil, err)
				return
			}
			if sleepContext(ctx, pause) != nil {
				yield(nil, fmt.Errorf("GET %s: %w", path, context.Cause(ctx)))
				return
			}
		}
	}
}

// readStream reads one stream. It returns nil when the stream is over and another one may be opened,
// and errEnded after the last event, or when yield returns false. It keeps *id up to date, and sets
// *heard when a line arrives.
func (c *Client) readStream(ctx context.Context, path string, id *string, heard *bool, yield func(*Event) bool) error {
	k := &call{method: http.MethodGet, path: path, isRepeatable: true}
	if *id != "" {
		k.header = http.Header{"Last-Event-Id": {*id}}
	}
	resp, err := c.sendOnce(ctx, k)
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
		*heard = true
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
		e, err := decodeEvent(kind, data)
		if err != nil {
			return fmt.Errorf("%s: %s: the event has an unexpected form: %w", k, kind, err)
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

// decodeEvent decodes an event; nil for a kind that this client does not know, so that a newer server
// may send other kinds.
func decodeEvent(kind string, data []byte) (*Event, error) {
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

// WaitOptions configure Wait. A zero member means the default.
type WaitOptions struct {
	// Progress is called with each summary, from Wait's own goroutine.
	Progress func(*Summary)
	// Poll is the longest time between two requests while only counts change; default
	// 500 ms with Progress, a minute without. A change of the run's state is reported at
	// once. With a server without long polls it is at most 500 ms, and the first requests
	// come faster.
	Poll time.Duration
	// Outage is how long the server may be away (a restart, say); default 30 s,
	// negative for not at all.
	Outage time.Duration
}

// With a server without long polls, firstPoll is the time between the first two requests. It
// grows by half each time, up to lastPoll.
const (
	firstPoll = 2 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// Wait waits until a run has ended and returns its last summary. It ends with the context, when
// the server refuses, or when the server is unreachable for longer than Outage.
func (c *Client) Wait(ctx context.Context, run uint64, o WaitOptions) (*Summary, error) {
	switch {
	case o.Poll > 0:
	case o.Progress != nil:
		o.Poll = lastPoll
	default:
		o.Poll = MaxStateWait
	}
	if o.Outage == 0 {
		o.Outage = 30 * time.Second
	}
	var away time.Time // since when; zero = it answers
	pause := pollSchedule{maxInterval: o.Poll, nextInterval: firstPoll}
	for {
		s, err := c.Summary(ctx, run)
		switch {
		case err == nil:
			away = time.Time{}
			if o.Progress != nil {
				o.Progress(s)
			}
			if Final(s.State) {
				return s, nil
			}
			err = c.awaitChange(ctx, s, &pause)
		case ctx.Err() != nil:
		case !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnavailable):
			return nil, err
		default:
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) >= o.Outage {
				return nil, fmt.Errorf("run %d: %w", run, err)
			}
			pause.cannotWait = false // after a restart it may have long polls
			err = sleepContext(ctx, pause.nextShortDelay())
		}
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", run, context.Cause(ctx))
		}
	}
}

// pollSchedule is the delays between requests.
type pollSchedule struct {
	maxInterval  time.Duration // at most
	nextInterval time.Duration // of the short ones
	cannotWait   bool          // the server does not have long polls
}

// nextShortDelay returns the delay before the next request without a long poll: 2, 3, 4.5 ms and so on,
// up to lastPoll or maxInterval.
func (p *pollSchedule) nextShortDelay() time.Duration {
	d := min(p.nextInterval, p.maxInterval, lastPoll)
	p.nextInterval = min(p.nextInterval+p.nextInterval/2, lastPoll)
	return d
}

// awaitChange returns when it is time for the next request: at once when the run's state has changed.
// An error is that of the context. A server that answers in less than half of the time, with the same
// state, does not wait; after that the delays of p replace its waits.
func (c *Client) awaitChange(ctx context.Context, s *Summary, p *pollSchedule) error {
	if p.cannotWait {
		return sleepContext(ctx, p.nextShortDelay())
	}
	began, wait := time.Now(), min(p.maxInterval, MaxStateWait)
	state, err := c.AwaitState(ctx, s.RunID, s.State, wait)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil: // the next request reports it
		return sleepContext(ctx, p.nextShortDelay())
	case state != s.State:
		return nil
	}
	if took := time.Since(began); took < wait/2 { // the server shuts down, or is too old
		p.cannotWait = true
		return sleepContext(ctx, p.nextShortDelay())
	}
	return nil
}
