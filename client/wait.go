package client

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// WaitOptions say how Wait looks. A zero member means the default.
type WaitOptions struct {
	// Progress is called after each look, from Wait's own goroutine.
	Progress func(*Summary)
	// Poll is the longest time between two looks while only counts change;
	// default 500 ms with Progress, a minute without. A change of the run's state is
	// seen at once. With a server that cannot be waited on it is at most 500 ms, and
	// the first looks come faster.
	Poll time.Duration
	// Outage is how long the server may be away (a restart, say); default 30 s,
	// negative for not at all.
	Outage time.Duration
}

// With a server that cannot be waited on, firstPoll is the time between the first
// two looks; it grows by half each time, up to lastPoll.
const (
	firstPoll = 2 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// Wait looks at a run until it has ended and returns its last summary. It ends
// with the context, when the server refuses, or when it is away for too long.
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
	pause := pauses{poll: o.Poll, next: firstPoll}
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
			err = c.untilNews(ctx, s, &pause)
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
			pause.deaf = false // its successor may be waited on
			err = sleep(ctx, pause.short())
		}
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", run, context.Cause(ctx))
		}
	}
}

// pauses are the times between looks.
type pauses struct {
	poll time.Duration // at most
	next time.Duration // of the short ones
	deaf bool          // the server cannot be waited on
}

// short is a pause without the server's help.
func (p *pauses) short() time.Duration {
	d := min(p.next, p.poll, lastPoll)
	p.next = min(p.next+p.next/2, lastPoll)
	return d
}

// untilNews returns when it is time for another look: at once when the run's state
// has changed. Its error is the context's.
func (c *Client) untilNews(ctx context.Context, s *Summary, p *pauses) error {
	if p.deaf {
		return sleep(ctx, p.short())
	}
	began, wait := time.Now(), min(p.poll, MaxStateWait)
	state, err := c.AwaitState(ctx, s.RunID, s.State, wait)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil: // the next look tells
		return sleep(ctx, p.short())
	case state != s.State:
		return nil
	}
	if took := time.Since(began); took < wait/2 { // it shuts down, or it is too old
		p.deaf = true
		return sleep(ctx, p.short())
	}
	return nil
}
