package outputs_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// TestHoldDefersRemovals: what is removed while files are held can be read until they are released, by
// the last of those who hold them.
func TestHoldDefersRemovals(t *testing.T) {
	s, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	body := bytes.Repeat([]byte("x"), 5000)
	for run := range messages.RunID(3) {
		if err := s.ImportRun(run, int64(len(body)), bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	found := func() (runs []messages.RunID) {
		err := s.ForEachRun(func(run messages.RunID) error {
			return s.ReadRun(run, func(size int64, r io.Reader) error {
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) || size != int64(len(body)) {
					t.Errorf("run %d: %d bytes, %v", run, len(got), err)
				}
				runs = append(runs, run)
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		return runs
	}
	first, second := s.HoldRemovals(), s.HoldRemovals()
	if err := s.Remove(1); err != nil {
		t.Fatal(err)
	}
	first()
	if got := found(); len(got) != 3 {
		t.Errorf("held, and there are %v", got)
	}
	second()
	if got := found(); len(got) != 2 {
		t.Errorf("released, and there are %v", got)
	}
	if err := s.ImportRun(0, 1, bytes.NewReader(body)); err == nil {
		t.Error("a file is overwritten")
	}
	if err := s.ImportRun(9, 6000, bytes.NewReader(body)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than announced: %v", err)
	}
}
