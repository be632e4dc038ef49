package persistence_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// pipeDocument is a document that is still being written.
type pipeDocument struct {
	size int64
	r    *io.PipeReader
}

func (d pipeDocument) Size() int64 { return d.size }

func (d pipeDocument) Open() (io.ReadCloser, error) { return d.r, nil }

// appendLong begins run 0 with a document of 8 MiB, to be written to w; done gets the answer.
func appendLong(t *testing.T, s opened) (w *io.PipeWriter, done <-chan error) {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	batch := journaltest.NewRun(0, "", "")
	batch.Create.Definition, batch.Create.Long = nil, pipeDocument{8 << 20, r}
	answer := make(chan error, 1)
	batch.Done = func(err error) { answer <- err }
	s.Append(batch)
	return w, answer
}

// While a long document is being written others commit; a crash in the middle of it
// leaves rows, and the next open none.
func TestCrashDuringALongDocument(t *testing.T) {
	s := open(t, t.TempDir()).(opened)
	w, done := appendLong(t, s)
	for size := 0; rows(t, s, 'd') < 3; size += 64 << 10 { // what is incompressible comes out in parts
		if _, err := w.Write(incompressibleBytes(messages.RunID(size>>16), 64<<10)); err != nil || size > 8<<20 {
			t.Fatalf("%v, after %d bytes", err, size)
		}
		journaltest.MustAppend(t, s, &persistence.Batch{}) // a commit of somebody else
	}
	crashed := open(t, copyFolder(t, s.dir)).(opened)
	for _, typ := range []byte("dzusj") {
		if n := rows(t, crashed, typ); n != 0 {
			t.Errorf("%d rows of type %c are left", n, typ)
		}
	}
	if next, err := crashed.NextRun(); next != 0 || err != nil {
		t.Errorf("next run %d, %v", next, err)
	}
	w.CloseWithError(errors.New("gone"))
	if err := <-done; err == nil {
		t.Error("a document that broke off made a run")
	}
	if n := rows(t, s, 'd') + rows(t, s, 'z'); n != 0 {
		t.Errorf("%d rows are left of a document that broke off", n)
	}
}

// A store that is closed while a document comes answers.
func TestCloseDuringALongDocument(t *testing.T) {
	s := open(t, t.TempDir()).(opened)
	w, done := appendLong(t, s)
	if _, err := w.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	testenv.Eventually(t, "the store takes no more", func() bool { return persistence.IsClosing(s.RunStore) })
	go func() {
		for i := messages.RunID(0); ; i++ {
			if _, err := w.Write(incompressibleBytes(i, 64<<10)); err != nil {
				return
			}
		}
	}()
	if err := <-done; !errors.Is(err, persistence.ErrClosed) {
		t.Errorf("answer %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func rows(t *testing.T, s opened, typ byte) int {
	t.Helper()
	n, err := persistence.CountRows(s.RunStore, typ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
