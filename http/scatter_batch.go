package http

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// A batch in a cluster of several partitions. The node that reads it plans each line, as on a single node,
// and then has the lines of a turn created: those of each partition together, all partitions at once. The
// lines of another node travel as a batch of their own, whose answers are taken apart again, so that each
// line of the client is answered in its place:
//
//	batch.next → submitAll → submitGroup   of a partition that is led here   Engine.SubmitAll
//	                       → submitGroup   of another one   POST /v1/dagruns to its leader → resultOfLine
//
// When a node is lost before its answer, a group whose lines all have a key is sent again. Lines of other
// groups are answered outcome-unknown, except those whose answers had arrived.

// submitAll creates runs. In a cluster of several partitions each goes to the partition of its key; those
// without a key go together to the one with the shortest queue.
func (s *Server) submitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	if s.forwarder == nil || s.forwarder.cluster.Partitions() == 1 {
		return s.engine.SubmitAll(ctx, subs)
	}
	if _, ok := PartitionOf(ctx); ok {
		return s.engine.SubmitAll(ctx, subs) // a part that another node has forwarded
	}
	return s.forwarder.submitAll(ctx, subs)
}

// submitAll groups submissions by their partitions. The error is that of all of them; each result has its
// own.
func (f *forwarder) submitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	r, _ := ctx.(*requestContext)
	q := &scattered{f: f, ctx: ctx}
	var err error
	if r != nil {
		q.conn = r.conn
	}
	if q.caller, err = callerOn(q.conn, f.cluster.Self()).encode(); err != nil {
		return nil, err
	}
	count := f.cluster.Partitions()
	unkeyed := f.shortestQueue(count)
	groups := make(map[uint64][]int) // indexes in subs, by partition
	for i, sub := range subs {
		partition := unkeyed
		if sub.IdempotencyKey != "" {
			partition = keyPartition(sub.IdempotencyKey, count)
		}
		groups[partition] = append(groups[partition], i)
	}
	results := make([]messages.Result[messages.RunID], len(subs))
	var wait sync.WaitGroup
	for partition, group := range groups {
		wait.Go(func() { q.submitGroup(partition, group, subs, results) })
	}
	wait.Wait()
	return results, nil
}

// submitGroup creates the runs of one partition, and sets their results.
func (q *scattered) submitGroup(partition uint64, group []int, subs []*messages.Submission, results []messages.Result[messages.RunID]) {
	own := make([]*messages.Submission, len(group))
	isKeyed := true
	for i, at := range group {
		own[i] = subs[at]
		isKeyed = isKeyed && subs[at].IdempotencyKey != ""
	}
	asLines := func() []byte {
		var lines bytes.Buffer
		for _, sub := range own {
			appendLine(&lines, sub)
		}
		return lines.Bytes()
	}
	answered := 0 // lines of the group, from the first one, whose results are set
	// A repetition does not take back that a line was accepted.
	set := func(i int, line []byte) {
		if at := group[i]; i >= answered || results[at].Err != nil {
			results[at] = resultOfLine(line)
		}
	}
	salvage := func(received []byte) {
		for i := range group {
			line, rest, isWhole := bytes.Cut(received, []byte{'\n'})
			if !isWhole {
				return
			}
			set(i, line)
			received, answered = rest, max(answered, i+1)
		}
	}
	err := q.ask(q.ctx, partition, &part{method: fasthttp.MethodPost, path: batchPath, header: http.Header{fasthttp.HeaderContentType: {linesType}},
		body: asLines, isRepeatable: isKeyed, limit: maxLineAnswer * int64(len(group)), salvage: salvage},
		func(ctx context.Context) error {
			answers, err := q.f.s.engine.SubmitAll(ctx, own)
			if err == nil {
				for i, at := range group {
					results[at] = answers[i]
				}
			}
			return err
		}, func(answer *partAnswer) error {
			rest := answer.body
			for i := range group {
				var line []byte
				line, rest, _ = bytes.Cut(rest, []byte{'\n'})
				set(i, line)
			}
			return nil
		})
	if err != nil {
		for _, at := range group[answered:] {
			results[at].Err = err
		}
	}
}

// maxLineAnswer bounds the answer to a line that was found to be valid here, in bytes.
const maxLineAnswer = 64 << 10

// appendLine appends a submission as a line of a batch. Its document came as a line, so it is free of line
// feeds. The key is in the line, because the other node would count the lines of a request's key anew.
func appendLine(to *bytes.Buffer, sub *messages.Submission) {
	if sub.IdempotencyKey == "" {
		to.Write(sub.Body)
	} else {
		to.WriteString(`{"idempotencyKey":`)
		to.Write(appendString(nil, sub.IdempotencyKey))
		to.WriteString(`,"spec":`)
		to.Write(sub.Body)
		to.WriteByte('}')
	}
	to.WriteByte('\n')
}

// resultOfLine is the reverse of an answer to a line.
func resultOfLine(line []byte) (result messages.Result[messages.RunID]) {
	var answer struct {
		RunID  *uint64
		Status int
		Type   string
		Detail string
	}
	err := json.Unmarshal(line, &answer)
	switch {
	case len(line) == 0: // the node has stopped reading, and said so in the line before
		result.Err = &refusal{fasthttp.StatusServiceUnavailable, "the leader of the line's partition has not read the line: repeat it"}
	case err != nil:
		result.Err = fmt.Errorf("answer to a line: %w", err)
	case answer.RunID != nil:
		result.Value = messages.RunID(*answer.RunID)
	case answer.Type == kindOf(messages.OutcomeUnknown):
		result.Err = &messages.Error{Code: messages.OutcomeUnknown, Text: answer.Detail}
	default:
		result.Err = &refusal{answer.Status, answer.Detail}
	}
	return result
}
