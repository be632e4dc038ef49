package http

import (
	"errors"
	"io"

	"github.com/valyala/fasthttp"
)

// A body in chunks costs more than its content: a length and an extension for each chunk,
// and a trailer. fasthttp passes over extensions however long they are, within one Read of
// the body. So the bytes that come from the connection are counted, too.

const (
	// framingRoom is how many bytes beside its content a chunked body may have, and
	// framingRate how many more for each byte of content: chunks of one byte cost five.
	framingRoom = longUnread + 64<<10 // fasthttp drains longUnread of a body that nobody wants
	framingRate = 16
	// extensionRoom is how many bytes may come within one Read of the body, beside what is
	// read: fasthttp's buffer, and an extension.
	extensionRoom = 2 * headerLimit
)

// errFraming: a chunked body is more framing than content.
var errFraming = errors.New("the chunks of the body have extensions that are too long")

// chunkMeter counts what a chunked body takes. It is for the connection's goroutine.
type chunkMeter struct {
	on      bool
	over    bool  // a limit was passed
	wire    int64 // bytes that came from the connection
	content int64 // of them, bytes that the body's reader was given
	most    int64 // of wire, until the present Read of the body has ended
}

// measure begins to count, where the body is in chunks.
func (m *chunkMeter) measure(h *fasthttp.RequestHeader) {
	*m = chunkMeter{on: h.ContentLength() == -1, most: framingRoom}
}

// admits tells whether more may be read from the connection.
func (m *chunkMeter) admits() bool {
	if m.on && (m.wire > m.most || m.wire > framingRoom+(1+framingRate)*m.content) {
		m.over = true
	}
	return !m.over
}

// Read is for the connection's own goroutine.
func (c *conn) Read(p []byte) (int, error) {
	if !c.chunks.on {
		return c.Conn.Read(p)
	}
	if !c.chunks.admits() {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	c.chunks.wire += int64(n)
	return n, err
}

// bodyOf is the body of a request as it comes; nil when fasthttp has read it already.
func bodyOf(ctx *fasthttp.RequestCtx) io.Reader {
	stream := ctx.RequestBodyStream()
	if c := connOf(ctx); stream != nil && c != nil && c.chunks.on {
		return &chunkReader{stream, &c.chunks}
	}
	return stream
}

// chunkReader reads a body in chunks.
type chunkReader struct {
	stream io.Reader
	meter  *chunkMeter
}

func (r *chunkReader) Read(p []byte) (int, error) {
	m := r.meter
	p = p[:min(len(p), piece)]
	m.most = m.wire + int64(len(p)) + extensionRoom
	n, err := r.stream.Read(p)
	m.content += int64(n)
	m.most = m.wire + framingRoom // for what fasthttp drains
	if m.over && err != nil && err != io.EOF {
		err = errFraming // fasthttp does not say why
	}
	return n, err
}
