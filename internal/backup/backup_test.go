package backup_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/backup"
)

var about = backup.Header{Folder: "0a", Format: 3, Version: "v1", Created: time.Unix(1764400000, 0).UTC(), Moment: 99}

// sample is a backup, and what is in it as text.
func sample(t testing.TB, rows int) (stream []byte, content string) {
	t.Helper()
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, about)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintln(&text, about)
	for i := range rows {
		key, value := fmt.Appendf(nil, "k%07d", i), bytes.Repeat([]byte{byte(i)}, i%100)
		fmt.Fprintf(&text, "%s=%x\n", key, value)
		if err := w.Row(key, value); err != nil {
			t.Fatal(err)
		}
	}
	for run, size := range []int{0, 5, 300_000} {
		body := bytes.Repeat([]byte{byte('a' + run)}, size)
		fmt.Fprintf(&text, "%d: %s\n", run, body)
		if err := w.File(uint64(run), int64(size), bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Close()
	if err != nil || sum.Rows != uint64(rows) || sum.Files != 3 || sum.Bytes != 300_005 {
		t.Fatalf("%+v, %v", sum, err)
	}
	return b.Bytes(), text.String()
}

// content reads a backup as text.
func content(stream []byte) (string, error) {
	var text strings.Builder
	_, err := backup.Read(bytes.NewReader(stream), backup.Sink{
		Header: func(h backup.Header) error { fmt.Fprintln(&text, h); return nil },
		Row:    func(key, value []byte) error { fmt.Fprintf(&text, "%s=%x\n", key, value); return nil },
		File: func(run uint64, size int64, r io.Reader) error {
			body, err := io.ReadAll(r)
			if err == nil && int64(len(body)) != size {
				err = fmt.Errorf("file of %d bytes, announced were %d", len(body), size)
			}
			fmt.Fprintf(&text, "%d: %s\n", run, body)
			return err
		},
	})
	return text.String(), err
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	stream, want := sample(t, 20_000)
	if got, err := content(stream); err != nil || got != want {
		t.Errorf("%v; %d bytes of text, want %d", err, len(got), len(want))
	}
	sum, err := backup.Read(bytes.NewReader(stream), backup.Sink{}) // to verify only
	if err != nil || sum.Header != about || sum.Rows != 20_000 {
		t.Errorf("%+v, %v", sum, err)
	}
	again, _ := sample(t, 20_000)
	if !bytes.Equal(again, stream) {
		t.Error("the same content gives another stream")
	}
}

// TestEveryDamageIsDetected: no change of any byte, no cut, no chunk that is lost, repeated or moved
// goes unnoticed.
func TestEveryDamageIsDetected(t *testing.T) {
	stream, _ := sample(t, 50)
	damaged := func(what string, at int, b []byte) {
		t.Helper()
		if _, err := backup.Read(bytes.NewReader(b), backup.Sink{}); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	step := 1
	for at := 0; at < len(stream); at += step {
		if at > 5000 && at < len(stream)-200 {
			step = 997
		} else if step = 1; testing.Short() {
			step = 23
		}
		b := slices.Clone(stream)
		b[at] ^= 1 << (at % 8)
		damaged("bit", at, b)
		damaged("cut", at, stream[:at])
	}
	damaged("more", len(stream), append(slices.Clone(stream), 0))
	damaged("twice", len(stream), append(slices.Clone(stream), stream...))
	// The two last chunks of data are alike but for their number.
	chunk := 9 + 256<<10
	i := bytes.Index(stream, bytes.Repeat([]byte("c"), 256<<10)) - 9
	damaged("lost chunk", i, append(slices.Clone(stream[:i]), stream[i+chunk:]...))
	damaged("repeated chunk", i, append(slices.Clone(stream[:i+chunk]), stream[i:]...))
}

func TestErrorOfTheSinkEndsTheRead(t *testing.T) {
	stream, _ := sample(t, 50)
	full := errors.New("no space left")
	for name, s := range map[string]backup.Sink{
		"header": {Header: func(backup.Header) error { return full }},
		"row":    {Row: func(_, _ []byte) error { return full }},
		"file":   {File: func(uint64, int64, io.Reader) error { return full }},
	} {
		if _, err := backup.Read(bytes.NewReader(stream), s); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriterRefusesOversizedRows(t *testing.T) {
	w, err := backup.NewWriter(io.Discard, about)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Row(nil, make([]byte, 8<<20)); err == nil {
		t.Error("a row that no reader takes is written")
	}
	if err := w.File(1, 10, strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than announced: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	w, err := backup.NewWriter(&b, about)
	if err != nil {
		f.Fatal(err)
	}
	err = errors.Join(w.Row([]byte("k"), []byte("v")), w.File(7, 3, strings.NewReader("abc")))
	if _, cerr := w.Close(); err != nil || cerr != nil {
		f.Fatal(err, cerr)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:50])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := content(b); err != nil && !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("error %v", err)
		}
	})
}
