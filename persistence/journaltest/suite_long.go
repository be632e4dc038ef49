package journaltest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// This file: creations with a long document, which the store reads from a LongDocument, away from the
// other batches.

// longDocument is a messages.LongDocument in memory.
type longDocument struct {
	doc     []byte
	size    int64 // what Size says: doc may have fewer bytes, when reading breaks off
	err     error // the error that ends reading, instead of io.EOF
	openErr error // the error of Open
}

func (d *longDocument) Size() int64 { return d.size }

func (d *longDocument) Open() (io.ReadCloser, error) {
	if d.openErr != nil {
		return nil, d.openErr
	}
	end := io.Reader(strings.NewReader(""))
	if d.err != nil {
		end = failingReader{d.err}
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(d.doc), end)), nil
}

// failingReader ends a document with an error, as a broken upload or file does.
type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// newLongRun returns the batch that creates a run with a long document.
func newLongRun(run messages.RunID, doc []byte) *persistence.Batch {
	b := NewRun(run, "long", "")
	b.Create.Definition, b.Create.Long = nil, &longDocument{doc: doc, size: int64(len(doc))}
	b.Create.IdempotencyKey = "key of a long one"
	b.Seq, b.Records = 1, []byte("first")
	return b
}

// documentOf returns a run's document, long or not: the store decides in which form it gives a
// document back. It checks that Size is right.
func documentOf(t testing.TB, st *persistence.Stored) []byte {
	t.Helper()
	if st.Long == nil {
		return st.Definition
	}
	r, err := st.Long.Open()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	equal(t, "size of a long document", st.Long.Size(), int64(len(doc)))
	return doc
}

// testLongDocuments: long documents come back, and are deleted with their runs. They are empty, short,
// large without compressing, and large when they are compressed: the store learns their size only
// by reading them. The records and the key of the same batch come with the document.
func testLongDocuments(t *testing.T, b Backend) {
	s := b.Open(t)
	docs := [][]byte{nil, []byte("short"), incompressible(2 << 20), bytes.Repeat([]byte(`{"x":[1]}`), 1<<18)}
	check := func(s persistence.Store) {
		t.Helper()
		for i, doc := range docs {
			st := load(t, s, messages.RunID(i))
			if got := documentOf(t, st); !bytes.Equal(got, doc) {
				t.Errorf("document %d: %d bytes of %d came back", i, len(got), len(doc))
			}
			equal(t, "records", st.Records, [][]byte{[]byte("first")})
			equal(t, "next seq", st.NextSeq, 2)
		}
	}
	for i, doc := range docs {
		MustAppend(t, s, newLongRun(messages.RunID(i), doc))
	}
	check(s)
	s = b.Crash(t, s)
	check(s)
	// All four had the same key: the last run has it.
	run, _, ok, err := s.LookUpKey("key of a long one")
	if run != 3 || !ok || err != nil {
		t.Errorf("the key is that of run %d, %v, %v", run, ok, err)
	}
	for i := range docs {
		MustAppend(t, s, summaryBatch(messages.RunID(i), "long", 3))
	}
	if err := s.Delete([]messages.RunID{0, 1, 2, 3}, 0); err != nil {
		t.Fatal(err)
	}
	s = b.Reopen(t, s)
	if _, err := s.Load(2); !errors.Is(err, persistence.ErrNotFound) {
		t.Errorf("a deleted run: %v", err)
	}
}

// testBrokenLongDocument: a document that cannot be read to its end leaves the store
// as it was. The error is the document's own and not ErrFailed: a client that goes away must not stop
// the store. The batch after it is stored. The ID may be used again, and what the store had
// written of the broken document does not mix with the new one.
func testBrokenLongDocument(t *testing.T, b Backend) {
	s := b.Open(t)
	broken := errors.New("broken")
	for what, doc := range map[string]*longDocument{
		"cannot be opened": {openErr: broken},
		"breaks off":       {doc: incompressible(3 << 19), size: 2 << 20, err: broken},
		"at once":          {size: 2 << 20, err: broken},
	} {
		batch := newLongRun(5, nil)
		batch.Create.Long = doc
		if err := Append(t, s, batch, NewRun(6, "", "other")); !errors.Is(err, broken) || errors.Is(err, persistence.ErrFailed) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := s.Load(5); !errors.Is(err, persistence.ErrNotFound) {
			t.Errorf("%s: load: %v", what, err)
		}
	}
	equal(t, "definition of another run", string(load(t, s, 6).Definition), "other")
	// Larger than the broken document, so that parts left of that one would show.
	whole := incompressible(2 << 20)
	MustAppend(t, s, newLongRun(5, whole))
	if got := documentOf(t, load(t, b.Crash(t, s), 5)); !bytes.Equal(got, whole) {
		t.Errorf("%d bytes of %d came back", len(got), len(whole))
	}
}
