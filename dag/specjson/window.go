package specjson

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// partBytes is how much of a document is read at a time.
const partBytes = 256 << 10

// window is the part of a document that strings can still be cut from: all of a
// document in memory, or the newest parts of a streamed one.
//
// A streamed document is read by the decoder through the window. The window drops a part
// once the decoder is past it and every value that began there is complete. Strings that
// were cut keep their part alive.
type window struct {
	parts      []string // side by side
	one        [1]string
	base       int // offset of parts[0]
	served     int // how far the decoder has read
	done       int // offset after the last token
	openValues int // > 0: parts are kept, so that an open value can be cut as a whole

	source  io.Reader // nil: parts has it all
	readErr error     // what reading ended with
	buf     []byte
	// Lines that ended in dropped parts, and the offset after the last of them.
	lines, lineAt int
}

// setWhole makes w the window of a document in memory.
func (w *window) setWhole(text string) {
	w.one[0], w.served = text, len(text)
	w.parts = w.one[:]
}

// cut is a piece of the document, which must be in the window.
func (w *window) cut(from, to int) string {
	at := w.base
	for i, p := range w.parts {
		if from < at+len(p) {
			if to <= at+len(p) {
				return p[from-at : to-at]
			}
			var joined strings.Builder
			joined.Grow(to - from)
			for joined.WriteString(p[from-at:]); joined.Len() < to-from; joined.WriteString(p[:min(len(p), to-from-joined.Len())]) {
				i++
				p = w.parts[i]
			}
			return joined.String()
		}
		at += len(p)
	}
	return ""
}

// Read is for the decoder.
func (w *window) Read(dst []byte) (int, error) {
	end := w.end()
	if w.served == end {
		if w.readErr != nil {
			return 0, w.readErr
		}
		if w.readPart(); w.served == w.end() {
			return 0, w.readErr
		}
		end = w.end()
	}
	last := w.parts[len(w.parts)-1]
	n := copy(dst, last[len(last)-(end-w.served):])
	w.served += n
	return n, nil
}

// readPart reads a part.
func (w *window) readPart() {
	for w.openValues == 0 && len(w.parts) > 0 && w.base+len(w.parts[0]) <= w.done {
		p := w.parts[0]
		if i := strings.LastIndexByte(p, '\n'); i >= 0 {
			w.lines += strings.Count(p, "\n")
			w.lineAt = w.base + i + 1
		}
		w.base += len(p)
		w.parts[0] = ""
		w.parts = w.parts[1:]
	}
	if w.end()-w.done > maxOpenBytes || w.openValues > 0 && w.end()-w.base > maxOpenBytes {
		w.readErr = errLongValue
		return
	}
	if w.buf == nil {
		w.buf = make([]byte, partBytes)
	}
	n, err := io.ReadFull(w.source, w.buf)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	w.readErr = err
	if n > 0 {
		w.parts = append(w.parts, string(w.buf[:n]))
	}
}

func (w *window) end() int {
	end := w.base
	for _, p := range w.parts {
		end += len(p)
	}
	return end
}

// place describes an offset. All offsets in dropped parts map to the start of the window.
func (w *window) place(offset int) string {
	before := w.cut(w.base, max(w.base, min(offset, w.end())))
	line := 1 + w.lines + strings.Count(before, "\n")
	start := w.lineAt
	if i := strings.LastIndexByte(before, '\n'); i >= 0 {
		start = w.base + i + 1
	}
	at := w.base + len(before)
	return "line " + strconv.Itoa(line) + ", column " + strconv.Itoa(at-start+1) + " (offset " + strconv.Itoa(at) + ")"
}

// byteOrderMark is what some editors put in front of UTF-8. A document may begin with
// it; it is skipped, and offsets in problems count from behind it.
const byteOrderMark = "\xEF\xBB\xBF"

// trimByteOrderMark is the document behind its byte order mark.
func trimByteOrderMark(doc []byte) []byte { return bytes.TrimPrefix(doc, []byte(byteOrderMark)) }

// byteOrderMarkReader reads a document from behind its byte order mark.
type byteOrderMarkReader struct {
	r     io.Reader
	begun bool
	head  []byte // was read, and is no mark
}

func (m *byteOrderMarkReader) Read(p []byte) (int, error) {
	if !m.begun {
		m.begun = true
		head := make([]byte, len(byteOrderMark))
		n, err := io.ReadFull(m.r, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		m.head = trimByteOrderMark(head[:n])
	}
	if len(m.head) > 0 {
		n := copy(p, m.head)
		m.head = m.head[n:]
		return n, nil
	}
	return m.r.Read(p)
}
