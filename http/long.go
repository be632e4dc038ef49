package http

import (
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

// A long body is not held in memory. It is written to a file without a name as it
// comes, which may take its time and costs nothing but disk; a crash leaves nothing of
// it. Once it is there it is planned as it is read from the file, and stored as it is
// read again. That is done for one at a time: of several that come together each waits
// for its turn.

const (
	longFrom = 4 << 20  // a document of more bytes is long
	maxSpool = 32       // long bodies that are being received or wait for their turn
	ownSpool = 8        // those of one client: they may come slowly
	copyRoom = 64 << 10 // of each while it comes
	lookRoom = 1 << 20  // so much is written between two looks at the free disk
	maxLine  = 64 << 20 // of a document that is a line of many: those are held in memory
	maxZstd  = 8 << 20  // window
)

// longBody is a long body as it was sent. It is a messages.Document: that of what it
// decompresses to.
type longBody struct {
	coding string // "" = none
	packed []byte // or
	file   *os.File
	stored int64 // bytes in file
	size   int64 // of the document; known once it was read
	sum    [sha256.Size]byte

	mu    sync.Mutex
	uses  int
	close func() // after the last one; nil = nothing
}

var errGone = errors.New("the request is over")

func (b *longBody) Size() int64 { return b.size }

// Open fails once the request is over and all readers are closed.
func (b *longBody) Open() (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.uses == 0 {
		return nil, errGone
	}
	b.uses++
	if b.file == nil {
		return &longReader{body: b, in: strings.NewReader(string(b.packed))}, nil
	}
	return &longReader{body: b, in: io.NewSectionReader(b.file, 0, b.stored)}, nil
}

// release ends one use.
func (b *longBody) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.uses--; b.uses == 0 && b.close != nil {
		b.close()
	}
}

// longReader reads a long body's document.
type longReader struct {
	body   *longBody
	in     io.Reader
	out    io.Reader // what in decompresses to
	end    func()
	failed error
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

func (r *longReader) Close() error {
	if r.end != nil {
		r.end()
	}
	r.body.release()
	return nil
}

// decompressor undoes a Content-Encoding.
func decompressor(coding string, in io.Reader) (out io.Reader, end func(), err error) {
	switch strings.ToLower(coding) {
	case "", "identity":
		return in, func() {}, nil
	case "gzip", "x-gzip":
		out, err = gzip.NewReader(in)
		return out, func() {}, err
	case "zstd":
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstd))
		if err != nil {
			return nil, nil, err
		}
		return d, d.Close, nil
	default:
		return nil, nil, unsupportedCoding(coding)
	}
}

// spoolSet counts the long bodies that are being received or wait for their turn.
type spoolSet struct {
	mu      sync.Mutex
	all     int
	clients map[client]int
}

// add takes a place, or says why there is none.
func (ss *spoolSet) add(who client) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	switch {
	case ss.clients[who] >= ownSpool:
		return &refusal{fasthttp.StatusTooManyRequests, "too many large bodies of this client at a time: at most " + strconv.Itoa(ownSpool)}
	case ss.all >= maxSpool:
		return &refusal{fasthttp.StatusServiceUnavailable, "too many large bodies at a time: at most " + strconv.Itoa(maxSpool)}
	}
	ss.all++
	ss.clients[who]++
	return nil
}

// remove gives the place back.
func (ss *spoolSet) remove(who client) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all--
	if ss.clients[who]--; ss.clients[who] == 0 {
		delete(ss.clients, who)
	}
}

func (ss *spoolSet) len() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.all
}

// spool takes a body that turns out to be long: what of it was read, and the rest.
func (s *Server) spool(ctx *fasthttp.RequestCtx, begun []byte, rest io.Reader, announced int) (*longBody, error) {
	var who client
	if c := connOf(ctx); c != nil {
		who = c.client
	}
	if err := s.spools.add(who); err != nil {
		linger(ctx)
		ctx.SetConnectionClose()
		return nil, err
	}
	f, err := unnamed(s.cfg.Spool)
	if err != nil {
		s.spools.remove(who)
		ctx.SetConnectionClose()
		return nil, s.noSpool(err)
	}
	b := &longBody{file: f, uses: 1, close: func() {
		_ = f.Close() // there is nothing to be kept
		s.spools.remove(who)
	}}
	if err := s.receive(ctx, b, begun, rest, announced); err != nil {
		linger(ctx)
		ctx.SetConnectionClose()
		b.release()
		return nil, err
	}
	return b, nil
}

// receive writes a body to its file, to the body's end.
func (s *Server) receive(ctx *fasthttp.RequestCtx, b *longBody, begun []byte, rest io.Reader, announced int) error {
	piece, looked := begun, int64(0)
	room := make([]byte, copyRoom)
	for end := false; ; {
		if b.stored+int64(len(piece)) > s.cfg.MaxBody {
			return s.tooLarge(ctx)
		}
		if b.stored >= looked { // what is spooled must not take the room that the engine needs
			looked = b.stored + lookRoom
			if err := s.engine.Healthy(contextOf(ctx)); err != nil {
				return &refusal{fasthttp.StatusServiceUnavailable, err.Error()}
			}
		}
		n, err := b.file.Write(piece)
		b.stored += int64(n)
		switch {
		case err != nil:
			return s.noSpool(err)
		case end:
			return nil
		}
		n, err = rest.Read(room)
		piece = room[:n]
		switch {
		case err == io.EOF && announced >= 0 && b.stored+int64(n) < int64(announced):
			err = io.ErrUnexpectedEOF
		case err == io.EOF:
			end, err = true, nil
		}
		if err != nil {
			p := unread(err)
			return &refusal{p.status, p.text}
		}
	}
}

func (s *Server) noSpool(err error) error {
	s.log.Warn("http: a large body cannot be received", "error", err)
	return &refusal{fasthttp.StatusServiceUnavailable, "the server has no room for a large body"}
}

// unnamed makes a file that goes with its last descriptor.
func unnamed(dir string) (*os.File, error) {
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

// planLong plans a long body when its turn comes, which lasts until done is called.
func (s *Server) planLong(ctx *fasthttp.RequestCtx, b *longBody, hashed, strict bool) (plan *dag.Plan, warnings dag.Problems, done func(), err error) {
	if err := s.awaitTurn(ctx); err != nil {
		return nil, nil, nil, err
	}
	back := s.cfg.Sparing()
	done = func() { back(); <-s.turn }
	if plan, warnings, err = s.readLong(b, hashed, strict); err != nil {
		done()
		return nil, nil, nil, err
	}
	return plan, warnings, done, nil
}

// awaitTurn waits until no other long body is being planned and stored. A client that
// leaves meanwhile, or closes its side, is taken at its word: its document is dropped.
func (s *Server) awaitTurn(ctx *fasthttp.RequestCtx) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	default:
	}
	until, end, err := s.beginWait(ctx)
	if err != nil {
		return err
	}
	defer end()
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-until.Done():
	}
	ctx.SetConnectionClose()
	if err := s.permitOf(ctx).check(); err != nil {
		return err
	}
	if context.Cause(until) == errClientGone {
		return &refusal{fasthttp.StatusServiceUnavailable, errClientGone.Error() + " before the turn of its document had come: it was not taken"}
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
}

// readLong plans a long body, and finds its size and hash.
func (s *Server) readLong(b *longBody, hashed, strict bool) (*dag.Plan, dag.Problems, error) {
	doc, err := b.Open()
	if err != nil {
		return nil, nil, err
	}
	defer doc.Close()
	r := &measured{r: doc, limit: s.cfg.MaxBody}
	if hashed {
		r.hash = sha256.New()
	}
	checked, err := specjson.CheckFrom(r, s.cfg.Limits)
	if err != nil {
		return nil, nil, undecompressed(b.coding, err, s.cfg.MaxBody)
	}
	plan, warnings, err := planned(checked, strict)
	if err != nil {
		return nil, nil, err
	}
	b.size = r.n
	if hashed {
		r.hash.Sum(b.sum[:0])
	}
	return plan, warnings, nil
}

// errLong: a document is longer than the limit.
var errLong = errors.New("document is too long")

// measured counts what is read, to a limit, and hashes it.
type measured struct {
	r     io.Reader
	n     int64
	limit int64
	hash  hash.Hash // nil = not needed
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.n += int64(n); m.n > m.limit {
		return 0, errLong
	}
	if m.hash != nil {
		m.hash.Write(p[:n])
	}
	return n, err
}
