package http

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// A log is read by the offsets of the stream as the task wrote it. Long output has a cut: the bytes
// between its head and its tail are not kept.
//
//	offset   0          Head          Size-Tail      Size
//	         | kept     | cut         | kept         |
//	whole    | as kept  | one marker  | as kept      |   200: "\n[caravan: 104857600 bytes cut]\n"
//	range    ends at the cut, or begins after it         206 without a marker, so offsets stay true
//
// The answer to a followed log ends when the attempt has ended and all of its output is sent. It breaks
// off when the client leaves, the caller loses its right or the server shuts down: a client that wants
// the rest asks again with the offset it has reached. In the meantime the request holds a place for
// waits (client_gone.go) and polls: the output grows in another process, which does not report it.

const octetStream = "application/octet-stream"

// taskLog is GET /v1/dagrun/{run}/task/{task}/log: the raw output of an attempt. A marker line replaces
// bytes that are not kept, except in a range. It closes the log on each path that returns an error;
// otherwise the producer owns it. Without follow the answer ends at the size that the log has now, also
// while the attempt runs.
func (s *Server) taskLog(ctx *fasthttp.RequestCtx) error {
	run, name, err := taskParameter(ctx)
	if err != nil {
		return err
	}
	var q logQuery
	if err := eachParameter(ctx, q.setParameter); err != nil {
		return err
	}
	log, err := s.engine.OpenLog(contextOf(ctx), run, name, q.attempt, q.stream)
	if err != nil {
		return err
	}
	h := &ctx.Response.Header
	h.Set(fasthttp.HeaderXContentTypeOptions, "nosniff")
	if q.follow && log.Live() {
		until, end, err := s.beginWait(ctx)
		if err != nil {
			log.Close()
			return err
		}
		ctx.Response.ImmediateHeaderFlush = true
		s.stream(ctx, octetStream, &logFollower{logReader{log, q.offset, math.MaxInt64}, until, end, 0, s.permitOf(ctx)}, nil, -1)
		return nil
	}
	h.Set(fasthttp.HeaderAcceptRanges, "bytes")
	size := log.Size()
	if asked := ctx.Request.Header.Peek(fasthttp.HeaderRange); asked != nil && !q.follow && q.offset == 0 &&
		ctx.Request.Header.Peek(fasthttp.HeaderIfRange) == nil {
		if from, to, ok := parseRange(string(asked), size); ok {
			return s.logRange(ctx, log, from, to, size)
		}
	}
	// Refuse damaged output before the first byte: an answer that has begun can only break off.
	if kept, ok := log.(interface{ Verify(from int64) error }); ok && size-q.offset > pieceBytes {
		if err := kept.Verify(q.offset); err != nil {
			log.Close()
			return err
		}
	}
	return s.send(ctx, octetStream, &logReader{log, q.offset, size})
}

// logQuery selects the output to read.
type logQuery struct {
	attempt uint32 // 0 = the latest
	stream  messages.Stream
	follow  bool  // go on until the attempt has ended
	offset  int64 // bytes of the stream to skip; beyond its end the answer is empty
}

func (q *logQuery) setParameter(name, value string) (err error) {
	switch name {
	case "attempt":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 {
			return invalid("query parameter attempt: " + quoteInput(value) + " must be a number from 1")
		}
		q.attempt = uint32(n)
	case "stream":
		switch value {
		case "stdout":
			q.stream = messages.Stdout
		case "stderr":
			q.stream = messages.Stderr
		default:
			return invalid("query parameter stream: " + quoteInput(value) + " must be stdout or stderr")
		}
	case "follow":
		q.follow, err = parseSwitch(name, value)
	case "offset":
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil {
			return invalid("query parameter offset: " + quoteInput(value) + " must be a number from 0")
		}
		q.offset = int64(n)
	default:
		err = unknownParameter(name)
	}
	return err
}

// parseRange decodes a Range header of one range: the bytes [from, to) of size. An unsatisfiable
// range has from >= to. Any other header is not ok: the server ignores it, as RFC 9110 allows.
// (fasthttp.ParseByteRange does not tell an unsatisfiable range, which is answered 416, from a
// malformed one.)
func parseRange(header string, size int64) (from, to int64, ok bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if !ok || !strings.HasPrefix(header, "bytes=") {
		return 0, 0, false
	}
	if first == "" {
		n, err := strconv.ParseUint(last, 10, 63)
		return max(0, size-int64(n)), size, err == nil
	}
	a, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return 0, 0, false
	}
	if last == "" {
		return int64(a), size, true
	}
	b, err := strconv.ParseUint(last, 10, 63)
	if err != nil || b < a {
		return 0, 0, false
	}
	return int64(a), min(int64(b), size-1) + 1, true
}

// logRange answers 206, with the length that Content-Range announces, or 416. It owns log. Offsets are
// those of the stream as the task wrote it. A range ends before a cut, and a range that would begin in
// a cut begins after it; Content-Range has the result.
func (s *Server) logRange(ctx *fasthttp.RequestCtx, log messages.Log, from, to, size int64) error {
	total := "*" // it is still growing
	if !log.Live() {
		total = strconv.FormatInt(size, 10)
	}
	if from < to {
		from = log.Kept(from)
	}
	if from >= to {
		log.Close()
		ctx.Response.Header.Set(fasthttp.HeaderContentRange, "bytes */"+strconv.FormatInt(size, 10))
		return &refusal{fasthttp.StatusRequestedRangeNotSatisfiable, "the output has only " + strconv.FormatInt(size, 10) + " bytes: the range is outside of it"}
	}
	// Content-Range is sent before the bytes, so the range is read once to find its end.
	to, err := contiguousEnd(log, from, to)
	if err != nil || to == from {
		log.Close()
		ctx.Response.Header.Del(fasthttp.HeaderAcceptRanges)
		return cmp.Or(err, errors.New("http: kept output is missing"))
	}
	ctx.SetStatusCode(fasthttp.StatusPartialContent)
	ctx.Response.Header.Set(fasthttp.HeaderContentRange,
		"bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(to-1, 10)+"/"+total)
	s.stream(ctx, octetStream, &logReader{log, from, to}, nil, int(to-from))
	return nil
}

// contiguousEnd returns how far the log can be read without a cut, from `from` to `to` at most. It
// reads all of these bytes, so damage in them is an error before the header is sent.
func contiguousEnd(log messages.Log, from, to int64) (int64, error) {
	buf := make([]byte, pieceBytes)
	for from < to {
		n, err := log.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		from += int64(n)
		switch {
		case err == io.EOF || err == messages.ErrCut:
			return from, nil
		case err != nil:
			return from, err
		}
	}
	return from, nil
}

// logReader produces the bytes [off, end) of a log, with a marker for each cut.
type logReader struct {
	log      messages.Log
	off, end int64
}

// next appends up to pieceBytes. A read that ends at a cut returns what is before it; the next read
// returns no bytes there, and the marker takes their place. The marker counts all bytes of the cut.
func (r *logReader) next(dst []byte) ([]byte, bool, error) {
	if cap(dst)-len(dst) < pieceBytes {
		dst = append(make([]byte, 0, len(dst)+pieceBytes), dst...)
	}
	room := dst[len(dst) : len(dst)+pieceBytes]
	if r.off >= r.end {
		return dst, false, nil
	}
	n, err := r.log.ReadAt(room[:min(pieceBytes, r.end-r.off)], r.off)
	dst = dst[:len(dst)+n]
	r.off += int64(n)
	switch err {
	case nil:
		return dst, r.off < r.end, nil
	case io.EOF:
		return dst, false, nil
	case messages.ErrCut:
		if n == 0 {
			kept := r.log.Kept(r.off)
			dst = appendMarker(dst, kept-r.off)
			r.off = kept
		}
		return dst, true, nil
	default:
		return dst, false, err
	}
}

func (r *logReader) Close() error { return r.log.Close() }

// logFollower produces a log until the attempt has ended, the client has left or lost its right to
// the log, or the server shuts down. Only the first ends the answer properly.
type logFollower struct {
	logReader
	ctx          context.Context // ends when the client leaves, with its right, or at shutdown
	endWait      func()          // ends the place of the wait
	pollInterval time.Duration   // the last one; 0 after output
	permit       *permit         // checked at each poll: sessions expire by themselves
}

func (f *logFollower) Close() error {
	f.endWait()
	return f.logReader.Close()
}

// Bounds of pollInterval, which doubles while the log does not grow: 10, 20, 40, 80, 160, 250 ms. A log
// that grows is read without a pause.
const (
	minPollInterval = 10 * time.Millisecond
	maxPollInterval = 250 * time.Millisecond
)

// next waits for output. It returns a piece with more = true until the attempt has ended and a read
// after that found the end. A client that leaves is noticed by the watch of beginWait: while the task
// is silent the server does not write, so a failed write cannot show it.
func (f *logFollower) next(dst []byte) ([]byte, bool, error) {
	for {
		live := f.log.Live() // before reading, so that the last output is read as well
		before := len(dst)
		dst, _, err := f.logReader.next(dst)
		if err != nil || len(dst) > before {
			f.pollInterval = 0
			return dst, true, err
		}
		if !live {
			return dst, false, nil
		}
		f.pollInterval = min(max(2*f.pollInterval, minPollInterval), maxPollInterval)
		timer := time.NewTimer(f.pollInterval)
		select {
		case <-timer.C:
			if !f.permit.isValid() {
				return dst, true, errStreamBroken
			}
		case <-f.ctx.Done():
			timer.Stop()
			return dst, true, errStreamBroken
		}
	}
}
