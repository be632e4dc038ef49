package specjson

import (
	"io"
	"strconv"
	"strings"
)

// partBytes is how much of a document is read at a time.
const partBytes = 256 << 10

// window is the part of a document that strings can still be cut from: all of a
// short one, and of one that is read as a stream the newest bytes, in parts.
//
// Of a stream it is what the decoder reads. It lets go of a part once the decoder is
// past it and no value that began there is open; strings that were cut keep theirs.
type window struct {
	parts  []string // side by side
	one    [1]string
	base   int // offset of parts[0]
	served int // how far the decoder has read
	done   int // how far it has come
	holds  int // > 0: parts are kept, so that an open value can be cut as a whole

	from   io.Reader // nil: parts has it all
	failed error     // what reading ended with
	buf    []byte
	// Of what was let go: how many lines ended there, and where the last of them did.
	lines, lineAt int
}

// whole makes it the window of a document that is there.
func (w *window) whole(text string) {
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
		if w.failed != nil {
			return 0, w.failed
		}
		if w.next(); w.served == w.end() {
			return 0, w.failed
		}
		end = w.end()
	}
	last := w.parts[len(w.parts)-1]
	n := copy(dst, last[len(last)-(end-w.served):])
	w.served += n
	return n, nil
}

// next reads a part.
func (w *window) next() {
	for w.holds == 0 && len(w.parts) > 0 && w.base+len(w.parts[0]) <= w.done {
		p := w.parts[0]
		if i := strings.LastIndexByte(p, '\n'); i >= 0 {
			w.lines += strings.Count(p, "\n")
			w.lineAt = w.base + i + 1
		}
		w.base += len(p)
		w.parts[0] = ""
		w.parts = w.parts[1:]
	}
	if w.end()-w.done > maxOpenBytes || w.holds > 0 && w.end()-w.base > maxOpenBytes {
		w.failed = errLongValue
		return
	}
	if w.buf == nil {
		w.buf = make([]byte, partBytes)
	}
	n, err := io.ReadFull(w.from, w.buf)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	w.failed = err
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

// place says where an offset is. What was let go of counts as one place.
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
