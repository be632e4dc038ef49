package specjson

import (
	"bytes"
	"errors"
	"io"
)

// byteOrderMark is what some editors put in front of UTF-8. A document may begin with
// it; it is skipped, and offsets in problems count from behind it.
const byteOrderMark = "\xEF\xBB\xBF"

// withoutMark is the document behind its byte order mark.
func withoutMark(doc []byte) []byte { return bytes.TrimPrefix(doc, []byte(byteOrderMark)) }

// markSkipper reads a document from behind its byte order mark.
type markSkipper struct {
	r     io.Reader
	begun bool
	head  []byte // was read, and is no mark
}

func (m *markSkipper) Read(p []byte) (int, error) {
	if !m.begun {
		m.begun = true
		head := make([]byte, len(byteOrderMark))
		n, err := io.ReadFull(m.r, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		m.head = withoutMark(head[:n])
	}
	if len(m.head) > 0 {
		n := copy(p, m.head)
		m.head = m.head[n:]
		return n, nil
	}
	return m.r.Read(p)
}
