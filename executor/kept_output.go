package executor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// OutputBounds says which bytes of an output stream are kept: all bytes up to Limit, of a longer
// stream the first and the last Limit/2 bytes. While the task runs the middle is given up in
// steps. Each executor that keeps output in files shares this type.
//
// Each stream embeds its bounds. The monitor of its executor moves Hole, the goroutine that handles the
// attempt's end calls Freeze, and readers look at both at any time.
type OutputBounds struct {
	Limit int64
	Hole  atomic.Int64 // bytes [Head(), Hole) are gone; 0 when the stream is whole
	final atomic.Int64 // 1 + the size at the attempt's end; 0 while the attempt may run
}

// Bounds returns b. It is promoted by the stream that embeds b, as part of LiveOutput.
func (b *OutputBounds) Bounds() *OutputBounds { return b }

// Live tells whether the attempt may still run: Freeze was not called yet.
func (b *OutputBounds) Live() bool { return b.final.Load() == 0 }

// Freeze says that the attempt has ended with so many bytes in the stream. The first call counts.
func (b *OutputBounds) Freeze(size int64) { b.final.CompareAndSwap(0, size+1) }

// FinalSize returns the size that Freeze was given. frozen is false before that.
func (b *OutputBounds) FinalSize() (size int64, frozen bool) {
	n := b.final.Load()
	return n - 1, n != 0
}

// Head is how many bytes are kept from the beginning of a stream that exceeds Limit.
func (b *OutputBounds) Head() int64 { return b.Limit / 2 }

// NextHole returns the bytes to give up next, now that the stream has this size. ok is false while
// they are less than an eighth of Limit.
func (b *OutputBounds) NextHole(size int64) (from, to int64, ok bool) {
	from, to = max(b.Hole.Load(), b.Head()), size-(b.Limit-b.Head())
	if size < from {
		b.Hole.Store(0) // the task has truncated its output
	}
	return from, to, to-from >= max(b.Limit/8, 1)
}

// isGone tells whether the byte at off was given up.
func (b *OutputBounds) isGone(off int64) bool { return off >= b.Head() && off < b.Hole.Load() }

// LiveOutput is the output stream of an attempt that may still run.
type LiveOutput interface {
	io.ReaderAt  // reads the file as it is, with zeros for bytes that were given up
	Size() int64 // bytes so far; fixed once the attempt has ended
	Live() bool  // the attempt has not ended
	Bounds() *OutputBounds
}

// NewLiveLog returns a messages.Log of a stream. It may be read for as long as it is open, also
// after the attempt's end. closeOutput is called once.
func NewLiveLog(output LiveOutput, closeOutput func() error) messages.Log {
	return &liveLog{LiveOutput: output, close: sync.OnceValue(closeOutput)}
}

type liveLog struct {
	LiveOutput
	close func() error
}

// ReadAt implements messages.Log. Bytes may be given up while they are read, so it looks at the
// bounds again afterwards.
func (l *liveLog) ReadAt(p []byte, off int64) (int, error) {
	bounds, size := l.Bounds(), l.Size()
	head := bounds.Head()
	if off >= size {
		return 0, io.EOF
	}
	if bounds.isGone(off) {
		return 0, messages.ErrCut
	}
	end := size
	if off < head && bounds.Hole.Load() > head {
		end = min(end, head)
	}
	n, err := l.LiveOutput.ReadAt(p[:min(int64(len(p)), end-off)], off)
	if off < head && off+int64(n) > head && bounds.Hole.Load() > head {
		n, err = int(head-off), nil
	}
	if bounds.isGone(off) {
		return 0, messages.ErrCut
	}
	if err == nil && n < len(p) && off+int64(n) >= size {
		err = io.EOF
	}
	return n, err
}

// Kept implements messages.Log.
func (l *liveLog) Kept(off int64) int64 {
	off = max(off, 0)
	if bounds := l.Bounds(); bounds.isGone(off) {
		off = bounds.Hole.Load()
	}
	return min(off, l.Size())
}

// Close implements messages.Log.
func (l *liveLog) Close() error { return l.close() }

// CommonConfig is the part of its configuration that each executor has which runs programs: where
// reports and output go, and how long an attempt has to end.
type CommonConfig struct {
	Outputs    *outputs.Store // where long output goes; required
	Sink       Sink           // required
	MaxOutput  int64          // bytes kept per stream, half from each end; default 64 MiB
	MaxCapture int64          // bytes of Report.Stdout; default 16 MiB
	InlineMax  int            // output up to this many bytes is kept in the record; default 4 KiB
	Grace      time.Duration  // from SIGTERM to SIGKILL after a timeout; default 5 s
	CloseGrace time.Duration  // the same at Close; default 1 s
	Logger     *slog.Logger   // default slog.Default()
}

// SetDefaults gives fields that are not set, or negative, their defaults.
func (c *CommonConfig) SetDefaults() {
	c.MaxOutput = cmp.Or(max(c.MaxOutput, 0), 64<<20)
	c.MaxCapture = cmp.Or(max(c.MaxCapture, 0), 16<<20)
	c.InlineMax = cmp.Or(max(c.InlineMax, 0), 4<<10)
	c.Grace = cmp.Or(max(c.Grace, 0), 5*time.Second)
	c.CloseGrace = cmp.Or(max(c.CloseGrace, 0), time.Second)
	c.Logger = cmp.Or(c.Logger, slog.Default())
}

// StdoutLimit is how many bytes of stdout are kept while the attempt runs. For a generator these are
// all that CaptureStdout may ask for.
func (c *CommonConfig) StdoutLimit(capture bool) int64 {
	if capture {
		return max(c.MaxOutput, c.MaxCapture)
	}
	return c.MaxOutput
}

// EndedOutput is the output stream of an ended attempt.
type EndedOutput interface {
	io.ReaderAt
	Size() int64
}

// exceedsRecord tells whether output is too long for the record itself.
func (c *CommonConfig) exceedsRecord(o *messages.Output) bool {
	return o.Head+o.Tail > int64(c.InlineMax)
}

// KeepOutput puts short output into the report's record and long output into the run's file, with one
// durable append for both streams. When the append fails the attempt's result stands, with the
// beginning of its output and a note on what was lost.
func (c *CommonConfig) KeepOutput(r *Report, stdout, stderr EndedOutput) {
	rec := &r.Record
	both := []struct {
		stream messages.Stream
		kept   *messages.Output
		from   EndedOutput
	}{{messages.Stdout, &rec.Stdout, stdout}, {messages.Stderr, &rec.Stderr, stderr}}
	var parts []outputs.Part
	for _, s := range both {
		size := s.from.Size()
		*s.kept = messages.Output{Size: size, Head: size}
		if size > c.MaxOutput {
			s.kept.Head, s.kept.Tail = c.MaxOutput/2, c.MaxOutput-c.MaxOutput/2
		}
		if !c.exceedsRecord(s.kept) {
			s.kept.Inline = readKept(s.from, s.kept)
			continue
		}
		parts = append(parts, outputs.Part{Stream: s.stream, Length: s.kept.Head + s.kept.Tail, Body: io.MultiReader(
			io.NewSectionReader(paddedReader{s.from}, 0, s.kept.Head), io.NewSectionReader(paddedReader{s.from}, size-s.kept.Tail, s.kept.Tail))})
	}
	if parts == nil {
		return
	}
	offsets, err := c.Outputs.Append(r.Key, parts...)
	if err != nil {
		if !errors.Is(err, outputs.ErrDiskNearlyFull) { // a full disk would log every attempt
			c.Logger.Error("output not kept", LogKey(r.Key), "err", err)
		}
		rec.ExecutorLog = JoinTexts(rec.ExecutorLog, fmt.Sprintf("output cut to %d bytes: %v", c.InlineMax, err))
	}
	for _, s := range both {
		switch {
		case !c.exceedsRecord(s.kept):
		case err != nil:
			s.kept.Head, s.kept.Tail = min(s.kept.Head, int64(c.InlineMax)), 0
			s.kept.Inline = readKept(s.from, s.kept)
		default:
			s.kept.Offset, offsets = offsets[0], offsets[1:]
		}
	}
}

// CaptureStdout puts all of stdout, whose size is in the record, into the report. An attempt that
// succeeded with output which exceeds MaxCapture, or cannot be read, is rejected.
func (c *CommonConfig) CaptureStdout(r *Report, stdout io.ReaderAt) {
	size, problem := r.Record.Stdout.Size, ""
	if size > c.MaxCapture {
		problem = fmt.Sprintf("%d bytes of output are more than the %d that a generator may print", size, c.MaxCapture)
	} else {
		text := make([]byte, size)
		if err := readPadded(stdout, text, 0); err == nil {
			r.Stdout = text
			return
		} else {
			problem = err.Error()
		}
	}
	r.Record.ExecutorLog = JoinTexts(r.Record.ExecutorLog, problem)
	if r.Record.Result == messages.AttemptSucceeded {
		r.Record.Result = messages.AttemptRejected
	}
}

// readKept reads the kept bytes of a stream. Bytes that cannot be read stay zero.
func readKept(from io.ReaderAt, o *messages.Output) []byte {
	if o.Head+o.Tail == 0 {
		return nil
	}
	text := make([]byte, o.Head+o.Tail)
	_ = readPadded(from, text[:o.Head], 0)
	_ = readPadded(from, text[o.Head:], o.Size-o.Tail)
	return text
}

// readPadded fills p, with zeros behind the end: a surviving child may have truncated the file after its
// size was taken. No bytes can always be read, also from a file that cannot be opened.
func readPadded(from io.ReaderAt, p []byte, off int64) error {
	n, err := from.ReadAt(p, off)
	if err == io.EOF || len(p) == 0 {
		clear(p[n:])
		return nil
	}
	return err
}

// paddedReader reads by readPadded.
type paddedReader struct{ io.ReaderAt }

// ReadAt implements io.ReaderAt.
func (r paddedReader) ReadAt(p []byte, off int64) (int, error) {
	if err := readPadded(r.ReaderAt, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// JoinTexts joins two parts of a record's ExecutorLog, each of which may be empty.
func JoinTexts(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
