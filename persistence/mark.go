package persistence

import (
	"encoding/binary"
	"fmt"
)

// Mark is where a server's own clock was, for the server that comes after it. The
// store only keeps it.
type Mark struct {
	Steady int64  // ns, on the server's own clock, which nobody can set
	Wall   int64  // ns since the epoch: the wall clock at that moment
	Boot   int64  // ns since the machine was started
	BootID string // which start of the machine that was; "" = not known
	Owed   bool   // Steady still lacks what passed up to Wall while the machine was off
}

const markV1 = 1

func appendMark(dst []byte, m Mark) []byte {
	dst = append(dst, markV1)
	for _, n := range []int64{m.Steady, m.Wall, m.Boot} {
		dst = binary.AppendVarint(dst, n)
	}
	owed := byte(0)
	if m.Owed {
		owed = 1
	}
	return appendString(append(dst, owed), m.BootID)
}

func decodeMark(v []byte) (m Mark, err error) {
	d := newDecoder(v, markV1)
	m = Mark{Steady: d.int(), Wall: d.int(), Boot: d.int(), Owed: d.byte() != 0, BootID: d.string()}
	if err := d.end(); err != nil {
		return Mark{}, fmt.Errorf("meta row mark: %w", err)
	}
	return m, nil
}

// Mark returns what SetMark has kept; ok is false in a new store.
func (s *Badger) Mark() (m Mark, ok bool, err error) {
	v, err := s.get(metaKey("mark"))
	if err != nil || v == nil {
		return Mark{}, false, err
	}
	if m, err = decodeMark(v); err != nil {
		return Mark{}, false, fmt.Errorf("%w; %s", err, errNextStep)
	}
	return m, true, nil
}

// SetMark keeps a mark and returns when it is durable.
func (s *Badger) SetMark(m Mark) error {
	return s.deleteStep([]op{seal(metaKey("mark"), appendMark(nil, m))})
}
