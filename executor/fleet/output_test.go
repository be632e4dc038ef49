package fleet

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// openOutput opens a section of b at a, when they are connected.
func openOutput(t *testing.T, a, b *testNode, id outputs.ID, out messages.Output) outputs.Section {
	t.Helper()
	var section outputs.Section
	eventually(t, "the nodes are connected", func() (ok bool) {
		var err error
		section, err = a.OpenOutput(b.id, id, out)
		return err == nil
	})
	return section
}

// TestOutputOfAnotherNode: each byte of a stream is read at another node, in any order. Damage there, and
// a node that is gone, are errors of their kind.
func TestOutputOfAnotherNode(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	text := make([]byte, 5*maxOutputRead/2)
	for i := range text {
		text[i] = byte(rand.Uint32())
	}
	id := outputs.ID{Key: testKey(1), Stream: messages.Stderr}
	offsets, err := b.outputs.Append(id.Key, outputs.Part{Stream: messages.Stderr, Body: bytes.NewReader(text), Length: int64(len(text))})
	if err != nil {
		t.Fatal(err)
	}
	out := messages.Output{Size: 1 << 40, Head: int64(len(text)) - 9, Tail: 9, Offset: offsets[0]}
	section := openOutput(t, a, b, id, out)
	defer section.Close()
	got, err := io.ReadAll(io.NewSectionReader(section, 0, int64(len(text))+5))
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d of %d bytes, %v", len(got), len(text), err)
	}
	part := make([]byte, 100)
	for _, at := range []int{7, maxOutputRead - 50, 0} {
		if n, err := section.ReadAt(part, int64(at)); n != 100 || err != nil || !bytes.Equal(part, text[at:at+100]) {
			t.Errorf("at %d: %d bytes, %v", at, n, err)
		}
	}
	if n, err := section.ReadAt(part, int64(len(text))-30); n != 30 || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
	if err := section.Verify(0); err != nil {
		t.Error(err)
	}

	var known *messages.Error
	elsewhere := out
	elsewhere.Offset++
	if _, err := a.OpenOutput("b", id, elsewhere); !errors.As(err, &known) || known.Code != messages.Damaged {
		t.Errorf("a record that the file contradicts: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(b.outputDir, "*", "*.out"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Truncate(files[0], int64(len(text))); err != nil { // the end of the last block is gone
		t.Fatal(err)
	}
	if err := section.Verify(0); !errors.As(err, &known) || known.Code != messages.Damaged {
		t.Errorf("a block is damaged: %v", err)
	}
	if n, err := openOutput(t, a, b, id, out).ReadAt(part, 0); n != 100 || err != nil {
		t.Errorf("a block before the damage: %d bytes, %v", n, err)
	}
	got, err = io.ReadAll(io.NewSectionReader(openOutput(t, a, b, id, out), 0, int64(len(text))))
	if !errors.As(err, &known) || known.Code != messages.Damaged || len(got) == 0 || !bytes.Equal(got, text[:len(got)]) {
		t.Errorf("%d bytes before the damage: %v", len(got), err)
	}
	b.outputs.SetReplaced()
	if _, err := a.OpenOutput("b", id, elsewhere); !errors.As(err, &known) || known.Code != messages.NotFound {
		t.Errorf("output that is lost: %v", err)
	}
	b.stop()
	eventually(t, "the loss of b is noticed", func() bool {
		_, err := a.OpenOutput("b", id, out)
		return errors.As(err, &known) && known.Code == messages.Unavailable
	})
	if _, err := section.ReadAt(part, 0); !errors.As(err, &known) || known.Code != messages.Unavailable {
		t.Errorf("b is down: %v", err)
	}
}

// TestOutputOfAStoppedNode: a node that keeps its connections and does not answer holds no reader up for long,
// and the next readers not at all for a while.
func TestOutputOfAStoppedNode(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	id := outputs.ID{Key: testKey(1)}
	offsets, err := b.outputs.Append(id.Key, outputs.Part{Body: bytes.NewReader([]byte("text")), Length: 4})
	if err != nil {
		t.Fatal(err)
	}
	section := openOutput(t, a, b, id, messages.Output{Size: 4, Head: 4, Offset: offsets[0]})
	remote := section.(*remoteSection)
	remote.limit = time.Nanosecond
	var known *messages.Error
	if _, err := section.ReadAt(make([]byte, 4), 0); !errors.As(err, &known) || known.Code != messages.Unavailable {
		t.Error(err)
	}
	remote.silence.begin(time.Hour)
	if _, err := a.OpenOutput("b", id, remote.out); err != errSilentNode {
		t.Errorf("after a wait without an answer: %v", err)
	}
	remote.silence.begin(0)
	if _, err := a.OpenOutput("b", id, remote.out); err != nil {
		t.Errorf("after the silence: %v", err)
	}
}
