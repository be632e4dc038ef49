package commitlog

import (
	"encoding/binary"
	"errors"
)

// Group is the rows of one commit, encoded once: the log writes them as they are, and
// another log may send them over a network. Its zero value is ready.
//
//	row = set, key length, key, value length, value | delete, key length, key
type Group struct {
	// buf has room in front of the rows for the record's header, and before that for
	// what lies in the same page already: a page is written whole.
	buf []byte
}

const (
	rowSet    = 1
	rowDelete = 2
	groupHead = pageSize + recordHead
)

// Reset empties the group.
func (g *Group) Reset() {
	if cap(g.buf) < groupHead {
		g.buf = make([]byte, groupHead, 4*groupHead)
	}
	g.buf = g.buf[:groupHead]
}

// Grow makes room for rows of n bytes.
func (g *Group) Grow(n int) {
	if free := cap(g.buf) - len(g.buf); free < n+pageSize { // the last page's end too
		g.buf = append(make([]byte, 0, len(g.buf)+n+n/4+2*pageSize), g.buf...)
	}
}

// Set appends a row.
func (g *Group) Set(key, value []byte) {
	g.buf = append(binary.AppendUvarint(append(g.buf, rowSet), uint64(len(key))), key...)
	g.buf = append(binary.AppendUvarint(g.buf, uint64(len(value))), value...)
}

// Delete appends the deletion of a row.
func (g *Group) Delete(key []byte) {
	g.buf = append(binary.AppendUvarint(append(g.buf, rowDelete), uint64(len(key))), key...)
}

// Bytes are the encoded rows. They are valid until the group is changed or appended.
func (g *Group) Bytes() []byte {
	if len(g.buf) < groupHead {
		return nil
	}
	return g.buf[groupHead:]
}

// Row is one row of a commit. Its slices refer to what was decoded.
type Row struct {
	Key, Value []byte
	Delete     bool
}

var errRows = errors.New("rows cannot be decoded")

// Rows calls fn for each encoded row.
func Rows(b []byte, fn func(Row) error) error {
	for len(b) > 0 {
		kind := b[0]
		r := Row{Delete: kind == rowDelete}
		if kind != rowSet && kind != rowDelete {
			return errRows
		}
		var ok bool
		if r.Key, b, ok = cutString(b[1:]); !ok || len(r.Key) == 0 {
			return errRows
		}
		if !r.Delete {
			if r.Value, b, ok = cutString(b); !ok {
				return errRows
			}
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, false
	}
	end := size + int(n)
	return b[size:end:end], b[end:], true
}
