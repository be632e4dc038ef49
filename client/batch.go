package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
)

// Submitted is what became of one line of SubmitLines.
type Submitted struct {
	RunID    uint64
	Err      *Error    // nil when the line is a run now
	Warnings []Problem // about members that are allowed but probably not meant
}

// SubmitLines submits many graphs, a spec per line of r, and yields the result of
// each, in their order, while r is still being read. A yielded run is durable. The other
// lines go on after a refused one. An error is the last value: the results of later lines
// are then unknown. SubmitLines never retries; with an idempotency key (line n gets
// key#n) the caller may.
func (c *Client) SubmitLines(ctx context.Context, r io.Reader, o SubmitOptions) iter.Seq2[Submitted, error] {
	return func(yield func(Submitted, error) bool) {
		k := &call{method: http.MethodPost, path: o.path("/v1/dagruns")}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // also of the sending
		req, err := http.NewRequestWithContext(ctx, k.method, c.base+k.path, struct{ io.Reader }{r})
		if err != nil {
			yield(Submitted{}, fmt.Errorf("%s: %w", k, err))
			return
		}
		req.Header.Set("Content-Type", "application/x-ndjson")
		c.sign(req)
		if o.IdempotencyKey != "" {
			req.Header.Set("Idempotency-Key", o.IdempotencyKey)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			yield(Submitted{}, c.transportError(ctx, k, err))
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			yield(Submitted{}, problemOf(k, resp))
			return
		}
		body := &faultReader{r: resp.Body}
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, maxProblem)
		for lines.Scan() {
			var line struct {
				RunID    *uint64   `json:"runID"`
				Warnings []Problem `json:"warnings"`
				problem
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				yield(Submitted{}, fmt.Errorf("%s: the answer is not what was expected: %w", k, err))
				return
			}
			var s Submitted
			if line.RunID != nil {
				s.RunID, s.Warnings = *line.RunID, line.Warnings
			} else {
				s.Err = &Error{Method: k.method, Path: k.path, Status: line.Status}
				line.into(s.Err)
			}
			if !yield(s, nil) {
				return
			}
		}
		switch {
		case body.err != nil:
			yield(Submitted{}, c.transportError(ctx, k, body.err))
		case lines.Err() != nil:
			yield(Submitted{}, fmt.Errorf("%s: %w", k, lines.Err()))
		}
	}
}
