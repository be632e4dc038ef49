package http

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// A long body is not held in memory. It is written to an unnamed file as it arrives, which may
// take long and only costs disk; a crash removes it. The complete body is planned while
// it is read from the file, and stored while it is read again. One body is planned and stored at a
// time; others wait for their turn.
//
//	receiveLongBody   a place of maxLongBodies, a file; the free disk is checked each MiB
//	planLong          the turn begins: specjson reads the file in parts, and the hash is made
//	engine.Submit     the store opens the document again, and copies it in parts
//	done              the turn ends
//	release           the last reader closes the file and frees the place
//
// At shutdown a body that waits for its turn is refused; one that has its turn is finished.

const (
	longBodyBytes         = 4 << 20  // a longer document is a long body
	maxLongBodies         = 32       // being received, or waiting for their turn
	maxLongBodiesOfClient = 8        // of those; they may arrive slowly
	copyBuffer            = 64 << 10 // of each body while it arrives
	diskCheckBytes        = 1 << 20  // bytes written between two checks of the free disk
	maxLineBytes          = 64 << 20 // of a line of a batch, which is in memory as a whole
	maxZstdWindow         = 8 << 20  // the window of zstd, the largest that HTTP allows (RFC 9659)
)

// longBody is a long body as it was sent. As a messages.LongDocument it is what the body decompresses
// to. The request that received it has one reference, and each open reader another: the store may still
// read when the client has left and the request is over.
type longBody struct {
	coding    string // of the body; "" = none
	inMemory  []byte // the body, or nil and
	file      *os.File
	fileBytes int64             // bytes in file
	size      int64             // of the document; known after planFromFile
	sum       [sha256.Size]byte // of the document; zero unless planFromFile was asked for it

	mu         sync.Mutex
	references int
	close      func() // called after the last release, with mu held; may be nil
}

// errBodyReleased is the error of Open after the last reference was released: the file is closed then.
var errBodyReleased = errors.New("the request is over")

// Size is the length of the document, decompressed.
func (b *longBody) Size() int64 { return b.size }

// Open returns a reader of the document from its start. Readers do not share an offset, so several may
// read at a time. Open fails after the request has ended and all readers are closed.
func (b *longBody) Open() (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.references == 0 {
		return nil, errBodyReleased
	}
	b.references++
	if b.file == nil {
		return &longReader{body: b, in: bytes.NewReader(b.inMemory)}, nil
	}
	return &longReader{body: b, in: io.NewSectionReader(b.file, 0, b.fileBytes)}, nil
}

// release drops one reference.
func (b *longBody) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.references--; b.references == 0 && b.close != nil {
		b.close()
	}
}

// longReader reads a long body's document. The decompressor begins with the first Read, because a
// decoder of gzip reads from its source when it is made, and Open must not do I/O.
type longReader struct {
	body   *longBody
	in     io.Reader // the bytes as they were sent
	out    io.Reader // in, decompressed; nil before the first Read
	end    func()    // releases the decompressor; nil without one
	failed error     // why there is no decompressor: the error of each Read
}

func (r *longReader) Read(p []byte) (int, error) {
	if r.out == nil && r.failed == nil {
		r.out, r.end, r.failed = decompressor(r.body.coding, r.in)
	}
	if r.failed != nil {
		return 0, r.failed
	}
	return r.out.Read(p)
}

// Close gives the reference back. It is called once.
func (r *longReader) Close() error {
	if r.end != nil {
		r.end()
	}
	r.body.release()
	return nil
}

// decompressor undoes a Content-Encoding. The caller calls end after its last read. An unknown coding
// is a refusal (415); other errors are about the bytes. The window bounds the memory of a decoder of
// zstd, which a few bytes of a header could ask for.
func decompressor(coding string, in io.Reader) (out io.Reader, end func(), err error) {
	switch strings.ToLower(coding) {
	case "", "identity":
		return in, func() {}, nil
	case "gzip", "x-gzip":
		out, err = gzip.NewReader(in)
		return out, func() {}, err
	case "zstd":
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return d, d.Close, nil
	default:
		return nil, nil, unsupportedCoding(coding)
	}
}

// longBodySet counts the long bodies that are being received or wait for their turn.
type longBodySet struct {
	mu      sync.Mutex
	all     int
	clients map[clientKey]int
}

// add takes a place, or returns why all are taken: 429 for a client that has its part, else 503.
func (ss *longBodySet) add(who clientKey) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	switch {
	case ss.clients[who] >= maxLongBodiesOfClient:
		return &refusal{fasthttp.StatusTooManyRequests, "too many large bodies of this client at a time: at most " + strconv.Itoa(maxLongBodiesOfClient)}
	case ss.all >= maxLongBodies:
		return &refusal{fasthttp.StatusServiceUnavailable, "too many large bodies at a time: at most " + strconv.Itoa(maxLongBodies)}
	}
	ss.all++
	ss.clients[who]++
	return nil
}

// remove frees a place.
func (ss *longBodySet) remove(who clientKey) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all--
	if ss.clients[who]--; ss.clients[who] == 0 {
		delete(ss.clients, who)
	}
}

func (ss *longBodySet) len() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.all
}

// receiveLongBody receives a long body: the part that was already read, and the rest. announced is the
// Content-Length, or negative for a body in chunks. The caller releases the body. After an error the
// connection closes, and the client gets the answer while it may still be sending (drainOnClose).
func (s *Server) receiveLongBody(ctx *fasthttp.RequestCtx, begun []byte, rest io.Reader, announced int, deadline chunkDeadline) (*longBody, error) {
	who := clientOf(ctx)
	if err := s.longBodies.add(who); err != nil {
		drainOnClose(ctx)
		ctx.SetConnectionClose()
		return nil, err
	}
	f, err := createUnnamed(s.cfg.Spool)
	if err != nil {
		s.longBodies.remove(who)
		ctx.SetConnectionClose()
		return nil, s.cannotStoreBody(err)
	}
	b := &longBody{file: f, references: 1, close: func() {
		_ = f.Close() // the file needs no sync
		s.longBodies.remove(who)
	}}
	if err := s.writeLongBody(ctx, b, begun, rest, announced, deadline); err != nil {
		drainOnClose(ctx)
		ctx.SetConnectionClose()
		b.release()
		return nil, err
	}
	return b, nil
}

// writeLongBody writes a complete body to its file. It asks the engine at the start and after each MiB
// whether it accepts runs, because free disk is a condition of that: bodies in the data folder must not
// take the space that the store needs for its next commits.
func (s *Server) writeLongBody(ctx *fasthttp.RequestCtx, b *longBody, begun []byte, rest io.Reader, announced int, deadline chunkDeadline) error {
	piece, looked := begun, int64(0)
	room := make([]byte, copyBuffer)
	for end := false; ; {
		if b.fileBytes+int64(len(piece)) > s.cfg.MaxBody {
			return s.bodyTooLarge(ctx)
		}
		if b.fileBytes >= looked {
			looked = b.fileBytes + diskCheckBytes
			if err := s.engine.AcceptsRuns(contextOf(ctx)); err != nil {
				return err
			}
		}
		n, err := b.file.Write(piece)
		b.fileBytes += int64(n)
		switch {
		case err != nil:
			return s.cannotStoreBody(err)
		case end:
			return nil
		}
		n, err = rest.Read(room)
		piece = room[:n]
		deadline.extend(n)
		switch {
		case err == io.EOF && announced >= 0 && b.fileBytes+int64(n) < int64(announced):
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			end, err = true, nil
		}
		if err := bodyReadError(ctx, err); err != nil {
			return err
		}
	}
}

// cannotStoreBody refuses a body that the disk does not take. The log has the reason; the client only
// learns to try again.
func (s *Server) cannotStoreBody(err error) error {
	s.log.Warn("http: a large body cannot be stored", "err", err)
	return &refusal{fasthttp.StatusServiceUnavailable, "the server cannot store a large body now"}
}

// createUnnamed creates a file that is deleted with its last descriptor. O_TMPFILE (open(2)) makes it
// without a name; a file system without that flag gives EOPNOTSUPP, a kernel that does not know the
// flag EISDIR. Then the file has a name for a moment, and a crash within that moment leaves it in the
// folder.
func createUnnamed(dir string) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, "body-"); err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// planLong plans a long body when its turn comes. The turn lasts until done is called, which the caller
// does after the document is stored; after an error the turn is over. hashed asks for the SHA-256 of
// the document, which only a submission with an idempotency key needs.
func (s *Server) planLong(ctx *fasthttp.RequestCtx, b *longBody, hashed, strict bool) (plan *dag.Plan, warnings dag.Problems, done func(), err error) {
	if err := s.awaitPlanningTurn(ctx); err != nil {
		return nil, nil, nil, err
	}
	back := s.cfg.LowerGCPressure()
	done = func() { back(); <-s.planningTurn }
	if plan, warnings, err = s.planFromFile(b, hashed, strict); err != nil {
		done()
		return nil, nil, nil, err
	}
	return plan, warnings, done, nil
}

// awaitPlanningTurn waits until the other long bodies are planned and stored. When the client
// leaves during the wait, or closes its side, its document is dropped.
func (s *Server) awaitPlanningTurn(ctx *fasthttp.RequestCtx) error {
	select {
	case s.planningTurn <- struct{}{}:
		return nil
	default:
	}
	until, end, err := s.beginWait(ctx)
	if err != nil {
		return err
	}
	defer end()
	select {
	case s.planningTurn <- struct{}{}:
		return nil
	case <-until.Done():
	}
	ctx.SetConnectionClose()
	if err := s.permitOf(ctx).check(); err != nil {
		return err
	}
	if context.Cause(until) == errClientGone {
		return &refusal{fasthttp.StatusServiceUnavailable, errClientGone.Error() + " before its document was planned: the document was dropped"}
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
}

// planFromFile plans a long body, and sets its size and hash. It reads the document once, in parts. It
// is not interrupted at shutdown: Shutdown waits for it, up to its deadline.
func (s *Server) planFromFile(b *longBody, hashed, strict bool) (*dag.Plan, dag.Problems, error) {
	doc, err := b.Open()
	if err != nil {
		return nil, nil, err
	}
	defer doc.Close()
	r := &limitedHasher{r: doc, limit: s.cfg.MaxBody}
	if hashed {
		r.hash = sha256.New()
	}
	checked, err := specjson.CheckFrom(r, s.limits())
	if err != nil {
		return nil, nil, decompressionError(b.coding, err, s.cfg.MaxBody)
	}
	plan, warnings, err := planResult(checked, strict)
	if err != nil {
		return nil, nil, err
	}
	b.size = r.n
	if hashed {
		r.hash.Sum(b.sum[:0])
	}
	return plan, warnings, nil
}

// errTooLong: a document is longer than the limit.
var errTooLong = errors.New("the document is too long")

// limitedHasher counts the bytes that are read, up to a limit, and hashes them.
type limitedHasher struct {
	r     io.Reader
	n     int64
	limit int64
	hash  hash.Hash // nil = no hash
}

// Read is as in io.Reader. It returns errTooLong in place of the first bytes beyond the limit.
func (m *limitedHasher) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.n += int64(n); m.n > m.limit {
		return 0, errTooLong
	}
	if m.hash != nil {
		m.hash.Write(p[:n])
	}
	return n, err
}
