package outputs

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// copyIn returns a copy of the stream of run 1 in a store.
func copyIn(node string, s *Store, out messages.Output) Copy {
	return Copy{Node: node, Open: func() (Section, error) { return s.OpenSection(one(1), out) }}
}

// silentCopy is on a node that does not answer.
func silentCopy(node string) Copy {
	return Copy{Node: node, Open: func() (Section, error) {
		return nil, &messages.Error{Code: messages.Unavailable, Text: "the node does not answer"}
	}}
}

// damage changes a byte of a store's file of run 1.
func (s *Store) damage(t *testing.T, at int64) {
	t.Helper()
	f, err := os.OpenFile(s.path(1), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := []byte{0}
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// TestWholeCopyStandsInForOthers: a stream is read to its end while one of its copies has each block, whatever
// offsets the copies have in their files.
func TestWholeCopyStandsInForOthers(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 3*blockBytes/16)
	first, second := open(t), open(t)
	second.put(t, 1, "another attempt")
	in, other := first.put(t, 1, text), second.put(t, 1, text)
	copies := []Copy{silentCopy("n1"), copyIn("n2", first, in), copyIn("n3", second, other)}
	first.damage(t, blockAt(in.Offset, 0)+5)
	second.damage(t, blockAt(other.Offset, 2)+5)

	log, err := OpenCopies(one(1), in, copies)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	got, err := io.ReadAll(io.NewSectionReader(log, 0, int64(len(text))))
	if err != nil || string(got) != text {
		t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
	}
	if log.Size() != int64(len(text)) || log.Live() || log.Kept(7) != 7 {
		t.Errorf("size %d, live %v, kept %d", log.Size(), log.Live(), log.Kept(7))
	}
	verify := log.(interface{ Verify(int64) error }).Verify
	if err := verify(blockBytes); err != nil { // the first one is whole there
		t.Error(err)
	}
	var known *messages.Error
	err = verify(0)
	if want := "node n2: output file " + first.path(1); !errors.As(err, &known) || known.Code != messages.Unavailable ||
		!strings.Contains(known.Text, want) || !strings.Contains(known.Text, "node n1: the node does not answer") {
		t.Errorf("no copy is whole: %v", err)
	}
}

// TestOutputWithoutACopyThatCanBeRead names each node, with the code that tells what may be done.
func TestOutputWithoutACopyThatCanBeRead(t *testing.T) {
	replaced, damaged := open(t), open(t)
	replaced.SetReplaced()
	out := damaged.put(t, 1, "text")
	damaged.damage(t, out.Offset+3)
	lost, broken, silent := copyIn("n1", replaced, out), copyIn("n2", damaged, out), silentCopy("n3")
	for _, c := range []struct {
		copies []Copy
		code   messages.ErrorCode
		text   string
	}{
		{[]Copy{lost}, messages.NotFound, "stdout of run 1, task 3, attempt 2 cannot be read: node n1: the output was lost with the former data folder"},
		{[]Copy{lost, broken}, messages.Damaged, "the former data folder; node n2: output file " + damaged.path(1)},
		{[]Copy{broken, lost}, messages.Damaged, ""},
		{[]Copy{broken, silent}, messages.Unavailable, "; node n3: the node does not answer"},
		{[]Copy{silent, broken, lost}, messages.Unavailable, ""},
	} {
		var known *messages.Error
		if _, err := OpenCopies(one(1), out, c.copies); !errors.As(err, &known) || known.Code != c.code || !strings.Contains(known.Text, c.text) {
			t.Errorf("%v; want code %d and %s", err, c.code, c.text)
		}
	}
	if err := replaced.Damaged(); err != nil {
		t.Errorf("output that was lost with its node counts as damage: %v", err)
	}
	kept := replaced.put(t, 1, "kept since")
	log, err := OpenCopies(one(1), kept, []Copy{copyIn("n1", replaced, kept)})
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
}
