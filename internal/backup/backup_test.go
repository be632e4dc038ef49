package backup_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/backup"
	"github.com/caravan-dag/caravan/internal/rowdigest"
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
		Partition: func(p backup.Partition) error {
			fmt.Fprintf(&text, "partition %d of moment %d\n", p.Number, p.Moment)
			return nil
		},
		Row: func(key, value []byte) error { fmt.Fprintf(&text, "%s=%x\n", key, value); return nil },
		PartitionEnd: func(p backup.Partition) error {
			fmt.Fprintf(&text, "%d rows of partition %d: %x\n", p.Rows, p.Number, p.Digest)
			return nil
		},
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

// clusterSample is a backup of a cluster with three partitions, of which the second one has no rows.
func clusterSample(t testing.TB, rows int) (stream []byte, content string) {
	t.Helper()
	var b bytes.Buffer
	of := about
	of.Cluster, of.Node, of.Partitions = "c1", "n1", 3
	w, err := backup.NewWriter(&b, of)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintln(&text, of)
	for p := range 3 {
		part := backup.Partition{Number: p, Moment: uint64(100 + p), Index: uint64(p), Term: 3}
		if err := w.Partition(part); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "partition %d of moment %d\n", p, 100+p)
		digest := rowdigest.New()
		for i := range rows * (p + 1) % (2 * rows) { // partition 1 is empty
			key, value := fmt.Appendf(nil, "k%07d", i), []byte{byte(p), byte(i)}
			digest.Add(key, value)
			fmt.Fprintf(&text, "%s=%x\n", key, value)
			if err := w.Row(key, value); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprintf(&text, "%d rows of partition %d: %x\n", digest.Rows(), p, digest.Sum())
	}
	if err := w.File(4, 5, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&text, "4: hello")
	sum, err := w.Close()
	if err != nil || sum.Rows != uint64(2*rows) || len(sum.Partitions) != 3 || sum.Partitions[2].Rows != uint64(rows) {
		t.Fatalf("%+v, %v", sum, err)
	}
	return b.Bytes(), text.String()
}

// chunksOf returns the places where the chunks of a stream begin, and its end.
func chunksOf(stream []byte) (at []int) {
	for i := len("CARAVAN BACKUP 1\n"); i < len(stream); i += 9 + int(binary.LittleEndian.Uint32(stream[i+1:])) {
		at = append(at, i)
	}
	return append(at, len(stream))
}

func TestReadReturnsWhatWasWrittenOfACluster(t *testing.T) {
	stream, want := clusterSample(t, 20_000)
	if got, err := content(stream); err != nil || got != want {
		t.Errorf("%v; %d bytes of text, want %d", err, len(got), len(want))
	}
	sum, err := backup.Read(bytes.NewReader(stream), backup.Sink{})
	if err != nil || sum.Header.Partitions != 3 || len(sum.Partitions) != 3 || sum.Partitions[1].Rows != 0 || sum.Partitions[2].Moment != 102 {
		t.Errorf("%+v, %v", sum, err)
	}
}

// TestEveryDamageOfAClustersBackupIsDetected: each bit, each cut, and each chunk that is lost, repeated or
// exchanged with the next one.
func TestEveryDamageOfAClustersBackupIsDetected(t *testing.T) {
	stream, _ := clusterSample(t, 20)
	damaged := func(what string, at int, b []byte) {
		t.Helper()
		if _, err := backup.Read(bytes.NewReader(b), backup.Sink{}); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for at := range stream {
		for bit := range 8 {
			b := slices.Clone(stream)
			b[at] ^= 1 << bit
			damaged("bit", at, b)
		}
		damaged("cut", at, stream[:at])
	}
	damaged("more", len(stream), append(slices.Clone(stream), 0))
	chunks := chunksOf(stream)
	if len(chunks) != 13 { // header, 3 × (begin, end), 2 × rows, file, data, trailer, end
		t.Fatalf("%d chunks", len(chunks)-1)
	}
	for i, at := range chunks[:len(chunks)-1] {
		next := chunks[i+1]
		damaged("lost chunk", at, slices.Concat(stream[:at], stream[next:]))
		damaged("repeated chunk", at, slices.Concat(stream[:next], stream[at:]))
		if i+2 < len(chunks) {
			after := chunks[i+2]
			damaged("moved chunk", at, slices.Concat(stream[:at], stream[next:after], stream[at:next], stream[after:]))
		}
	}
}

// forgery is a stream whose checksums are right: only the rules of the format can refuse it.
type forgery struct {
	b      []byte
	number uint64
}

func (f *forgery) chunk(kind byte, payload []byte) {
	head := binary.LittleEndian.AppendUint64(nil, f.number)
	head = binary.LittleEndian.AppendUint32(append(head, kind), uint32(len(payload)))
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(head, table), table, payload)
	f.b = binary.LittleEndian.AppendUint32(append(f.b, head[8:]...), sum)
	f.b = append(f.b, payload...)
	f.number++
}

// trailer ends the stream as if it had so many rows and files.
func (f *forgery) trailer(rows, files uint64) {
	digest := sha256.Sum256(f.b)
	payload := binary.LittleEndian.AppendUint64(nil, rows)
	payload = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(payload, files), 0)
	f.chunk('Z', append(payload, digest[:]...))
}

// TestPartitionsComeWholeAndInTurn: a stream with right checksums is refused when partitions are missing,
// out of turn or not ended, when rows lie outside of them or have another digest, and when header and magic
// disagree.
func TestPartitionsComeWholeAndInTurn(t *testing.T) {
	const one, two = "CARAVAN BACKUP 1\n", "CARAVAN BACKUP 2\n"
	row := append([]byte{1}, "k\x01v"...)
	end := func(rows ...[2]string) []byte {
		d := rowdigest.New()
		for _, r := range rows {
			d.Add([]byte(r[0]), []byte(r[1]))
		}
		sum := d.Sum()
		return append(binary.LittleEndian.AppendUint64(nil, d.Rows()), sum[:]...)
	}
	file := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 7), 0)
	for name, tc := range map[string]struct {
		magic, header string
		chunks        []any // kind, payload, …
		rows, files   uint64
		ok            bool
	}{
		"whole":                      {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'R', row, 'E', end([2]string{"k", "v"}), 'F', file}, 1, 1, true},
		"without rows":               {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'E', end()}, 0, 0, true},
		"missing partition":          {two, `{"partitions":2}`, []any{'P', `{"number":0}`, 'E', end()}, 0, 0, false},
		"no partition":               {two, `{"partitions":1}`, nil, 0, 0, false},
		"one too many":               {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'E', end(), 'P', `{"number":1}`, 'E', end()}, 0, 0, false},
		"twice":                      {two, `{"partitions":2}`, []any{'P', `{"number":0}`, 'E', end(), 'P', `{"number":0}`, 'E', end()}, 0, 0, false},
		"out of turn":                {two, `{"partitions":2}`, []any{'P', `{"number":1}`, 'E', end(), 'P', `{"number":0}`, 'E', end()}, 0, 0, false},
		"not ended":                  {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'R', row}, 1, 0, false},
		"begun twice":                {two, `{"partitions":2}`, []any{'P', `{"number":0}`, 'P', `{"number":1}`, 'E', end()}, 0, 0, false},
		"ended twice":                {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'E', end(), 'E', end()}, 0, 0, false},
		"wrong digest":               {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'R', row, 'E', end([2]string{"k", "w"})}, 1, 0, false},
		"wrong number of rows":       {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'R', row, 'E', append(binary.LittleEndian.AppendUint64(nil, 2), end([2]string{"k", "v"})[8:]...)}, 1, 0, false},
		"rows before all partitions": {two, `{"partitions":1}`, []any{'R', row, 'P', `{"number":0}`, 'E', end()}, 1, 0, false},
		"rows between partitions":    {two, `{"partitions":2}`, []any{'P', `{"number":0}`, 'E', end(), 'R', row, 'P', `{"number":1}`, 'E', end()}, 1, 0, false},
		"rows twice":                 {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'R', row, 'R', row, 'E', end([2]string{"k", "v"}, [2]string{"k", "v"})}, 2, 0, false},
		"file within a partition":    {two, `{"partitions":1}`, []any{'P', `{"number":0}`, 'F', file, 'E', end()}, 0, 1, false},
		"partition after a file":     {two, `{"partitions":1}`, []any{'F', file, 'P', `{"number":0}`, 'E', end()}, 0, 1, false},
		"no number":                  {two, `{"partitions":1}`, []any{'P', `x`, 'E', end()}, 0, 0, false},
		"header of a single server":  {two, `{}`, []any{'R', row}, 1, 0, false},
		"header of a cluster":        {one, `{"partitions":1}`, []any{'P', `{"number":0}`, 'E', end()}, 0, 0, false},
		"partition of a single one":  {one, `{}`, []any{'P', `{"number":0}`, 'E', end()}, 0, 0, false},
		"less than none":             {one, `{"partitions":-1}`, nil, 0, 0, false},
	} {
		f := &forgery{b: []byte(tc.magic)}
		f.chunk('H', []byte(tc.header))
		for i := 0; i < len(tc.chunks); i += 2 {
			payload, isBytes := tc.chunks[i+1].([]byte)
			if !isBytes {
				payload = []byte(tc.chunks[i+1].(string))
			}
			f.chunk(byte(tc.chunks[i].(rune)), payload)
		}
		f.trailer(tc.rows, tc.files)
		if _, err := backup.Read(bytes.NewReader(f.b), backup.Sink{}); tc.ok != (err == nil) || err != nil && !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWriterWritesAllPartitionsInTurn: the writer refuses what a reader would.
func TestWriterWritesAllPartitionsInTurn(t *testing.T) {
	of := about
	of.Partitions = 2
	w, err := backup.NewWriter(io.Discard, of)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Partition(backup.Partition{Number: 1}); err == nil {
		t.Error("partition 1 comes first")
	}
	if err := w.Partition(backup.Partition{Number: 0}); err != nil {
		t.Error(err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("a backup without partition 1 is complete")
	}
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
	ofCluster, _ := clusterSample(f, 3)
	f.Add(ofCluster)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := content(b); err != nil && !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("error %v", err)
		}
	})
}
