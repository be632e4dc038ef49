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
	// Poll is the longest time between two looks; default 500 ms. The first looks
	// come faster, so that a short run is seen to end at once.
	Poll time.Duration
	// Outage is how long the server may be away (a restart, say); default 30 s,
	// negative for not at all.
	Outage time.Duration
}

// firstPoll is the time between the first two looks; it grows by half each time.
const firstPoll = 2 * time.Millisecond

// Wait looks at a run until it has ended and returns its last summary. It ends
// with the context, when the server refuses, or when it is away for too long.
func (c *Client) Wait(ctx context.Context, run uint64, o WaitOptions) (*Summary, error) {
	if o.Poll <= 0 {
		o.Poll = 500 * time.Millisecond
	}
	if o.Outage == 0 {
		o.Outage = 30 * time.Second
	}
	var away time.Time // since when; zero = it answers
	for pause := min(firstPoll, o.Poll); ; pause = min(pause+pause/2, o.Poll) {
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
		case ctx.Err() != nil:
			return nil, fmt.Errorf("run %d: %w", run, context.Cause(ctx))
		case !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrUnavailable):
			return nil, err
		default:
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) >= o.Outage {
				return nil, fmt.Errorf("run %d: %w", run, err)
			}
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, fmt.Errorf("run %d: %w", run, context.Cause(ctx))
		}
	}
}
