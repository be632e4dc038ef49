package http

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// Events of the runs of several partitions:
//
//	partition 0, led here       followHere ─┐
//	partition 1, at node n2     ask         ├→ pieces → appendEvents → the client
//	partition 2, at node n3     ask        ─┘
//
// A goroutine for each partition reads its stream, and goes on at the next leader when that ends, after the
// position that it had reached. A partition that is without a leader for a while is silent, and catches up.
//
// The positions are times, of as many clocks as there are leaders. A client has one: the smallest. When it
// connects again with that, it gets again what other partitions had sent after this time, and misses
// nothing. The first position is sent when all partitions have theirs.

// allEvents merges the streams of all partitions. It is the eventSource of one request.
type allEvents struct {
	*scattered
	query  messages.ListQuery
	path   string
	raw    string          // the client's query, without its position
	pieces chan eventPiece // not buffered: a slow client slows down all streams
	since  []int64         // by partition: the position of its last piece; 0 = still unknown
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// eventPiece is what a partition has sent: events, or its position alone.
type eventPiece struct {
	partition uint64
	events    []byte // whole blocks, without their positions
	resumeAt  int64  // 0 = as before
	err       error  // ends the stream
}

// listenToAll is GET /v1/events over all partitions.
func (f *forwarder) listenToAll(ctx *fasthttp.RequestCtx) error {
	var query eventQuery
	if err := query.decode(ctx, query.setListParameter); err != nil {
		return err
	}
	q, err := f.newScattered(ctx)
	if err != nil {
		return err
	}
	e := &allEvents{scattered: q, query: query.list, path: string(ctx.URI().PathOriginal()), raw: string(ctx.URI().QueryString()),
		pieces: make(chan eventPiece), since: make([]int64, f.cluster.Partitions())}
	since := int64(query.resumeAfter & (1<<63 - 1))
	within, cancel := context.WithCancel(q.ctx)
	e.cancel = cancel
	for p := range e.since {
		e.since[p] = since
		e.wait.Go(func() { e.follow(within, uint64(p), since) })
	}
	return f.s.streamEvents(ctx, e)
}

// appendEvents waits for a piece of any partition.
func (e *allEvents) appendEvents(ctx context.Context, dst []byte) ([]byte, bool, error) {
	select {
	case piece := <-e.pieces:
		if piece.err != nil {
			return dst, false, piece.err
		}
		if piece.resumeAt > 0 {
			e.since[piece.partition] = piece.resumeAt
		}
		dst = append(dst, piece.events...)
		if at := slices.Min(e.since); at > 0 {
			dst = append(appendID(dst, uint64(at)), '\n')
		}
		return dst, false, nil
	case <-ctx.Done():
		return dst, false, ctx.Err()
	}
}

// Close ends all streams.
func (e *allEvents) Close() {
	e.cancel()
	e.wait.Wait()
}

// follow passes on the events of a partition until ctx ends. since is the position to begin at; 0 = now.
// An error that passes by itself, such as an election that takes long, does not end the whole stream: the
// client would connect again and again, and get the events of the other partitions twice.
func (e *allEvents) follow(ctx context.Context, partition uint64, since int64) {
	deliver := func(piece eventPiece) bool {
		piece.partition = partition
		if piece.resumeAt > 0 {
			since = piece.resumeAt
		}
		select {
		case e.pieces <- piece:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for ctx.Err() == nil {
		p := &part{method: fasthttp.MethodGet, path: e.path, query: e.raw, isRepeatable: true}
		if since > 0 {
			p.header = map[string][]string{"Last-Event-Id": {strconv.FormatInt(since, 10)}}
		}
		err := e.ask(ctx, partition, p,
			func(ctx context.Context) error { return e.followHere(ctx, since, deliver) },
			func(answer *partAnswer) error {
				if answer.stream == nil {
					return errors.New("the answer is not a stream of events")
				}
				defer answer.stream.Close()
				return readEvents(answer.stream, deliver)
			})
		if err != nil && ctx.Err() == nil && !isPassing(err) {
			deliver(eventPiece{err: err})
			return
		}
		// The stream has ended with its leader, or the partition waits for one. The others go on.
		pause := time.NewTimer(longestForwardPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// isPassing tells whether an error passes by itself.
func isPassing(err error) bool {
	var (
		known   *messages.Error
		refused *refusal
	)
	return errors.As(err, &known) && known.Code == messages.Unavailable || errors.As(err, &refused) && refused.status == fasthttp.StatusServiceUnavailable
}

// followHere passes on the events of a partition that is led here, until its engine ends or deliver is
// false.
func (e *allEvents) followHere(ctx context.Context, since int64, deliver func(eventPiece) bool) error {
	subscription, err := e.f.s.engine.Listen(ctx, e.query, since)
	if err != nil {
		return err
	}
	source := &listEventSource{subscription: subscription}
	defer source.Close()
	for {
		text, _, err := source.appendEvents(ctx, nil)
		if err == io.EOF || isNotLeader(err) {
			return nil // follow goes on after the last position
		}
		if err != nil {
			return err
		}
		if err := readEvents(bytes.NewReader(text), deliver); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// readEvents takes a stream of events apart, until its end. Comments are left out: this node has its own
// heartbeat. A block that is cut off is dropped, since its position has not come.
func readEvents(r io.Reader, deliver func(eventPiece) bool) error {
	lines := bufio.NewReader(r)
	var block []byte
	var resumeAt int64
	hasEvent := false
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return nil // the end, or the loss of the other node: the next leader goes on
		}
		switch {
		case len(line) == 1:
			piece := eventPiece{resumeAt: resumeAt}
			if hasEvent {
				piece.events = append(block, '\n')
			}
			if (hasEvent || resumeAt > 0) && !deliver(piece) {
				return nil
			}
			block, resumeAt, hasEvent = nil, 0, false
		case bytes.HasPrefix(line, []byte("id: ")):
			resumeAt, _ = strconv.ParseInt(string(bytes.TrimSpace(line[len("id: "):])), 10, 64)
		case line[0] == ':':
		default:
			block, hasEvent = append(block, line...), true
		}
	}
}
