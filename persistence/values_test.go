package persistence

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

func TestSummaryRoundTrip(t *testing.T) {
	for _, s := range []*messages.Summary{
		{},
		{State: dag.RunKilled, Tag: "täg", Start: math.MinInt64, LastUpdate: math.MaxInt64, Tasks: math.MaxUint32},
		{Tags: []dag.Label{{Name: "a"}, {Name: "b", Value: strings.Repeat("x", 1000)}}, Counts: messages.Counts{1, 2, 3, 4, 5, 6, math.MaxUint32}},
	} {
		s.ID = 9
		got, next, err := decodeSummary(9, appendSummary(nil, s, 77))
		if err != nil || next != 77 || !reflect.DeepEqual(got, s) {
			t.Errorf("got %+v, %v, want %+v", got, err, s)
		}
	}
}

func TestDocumentRoundTrip(t *testing.T) {
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, doc := range []string{"", "{}", strings.Repeat("{}", 511), strings.Repeat("{}", 512), strings.Repeat("long ", 1<<20)} {
		for _, key := range []string{"", "key"} {
			for _, records := range []string{"", "records"} {
				v := p.appendPacked(appendCreation(nil, &Creation{IdempotencyKey: key}, []byte(records)), []byte(doc))
				got, first, err := p.decodeDefinition(1, v)
				if err != nil || string(got) != doc || string(first) != records {
					t.Errorf("%d bytes: got %d, records %q, %v", len(doc), len(got), first, err)
				}
				if len(doc) >= compressFrom && len(v) > len(doc)/2 {
					t.Errorf("%d bytes take %d", len(doc), len(v))
				}
				c := decodeCreation(newDecoder(v, defV1))
				if c.hasKey != (key != "") || c.hasKey && c.key != hashKey(key) {
					t.Errorf("key %q: %x, %v", key, c.key, c.hasKey)
				}
			}
		}
		set, err := p.decodeSet(1, 3, p.appendPacked(setHead(nil, &GeneratedSet{Generator: 77}), []byte(doc)))
		if err != nil || set.N != 3 || set.Generator != 77 || string(set.JSON) != doc {
			t.Errorf("set: %+v, %v", set, err)
		}
	}
}

func TestStagedPartsRoundTrip(t *testing.T) {
	ops := []mutation{
		{Key: []byte("a"), Value: bytes.Repeat([]byte("v"), 1000)},
		{Key: []byte("b"), Delete: true},
		{Key: []byte("c"), Value: []byte{}},
	}
	var joined []byte
	for i, p := range stagedParts(ops, 5, 64) {
		if !bytes.Equal(p.Key, stageKey(5, uint32(i))) || len(p.Value) > 64+checksumSize {
			t.Fatalf("part %d: %x, %d bytes", i, p.Key, len(p.Value))
		}
		v, err := unsealRow(p.Key, p.Value)
		if err != nil {
			t.Fatal(err)
		}
		joined = append(joined, v...)
	}
	got, err := decodeStaged(joined)
	if err != nil || !reflect.DeepEqual(got, ops) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := decodeStaged(joined[:len(joined)-3]); err == nil {
		t.Error("a cut batch was accepted")
	}
}

// FuzzDecoders: whatever is stored, decoding ends with a value or an error.
func FuzzDecoders(f *testing.F) {
	p, err := newPacker()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.close)
	doc := []byte(strings.Repeat("document ", 200))
	for _, v := range [][]byte{
		nil, {1}, {2, 0, 0},
		appendSummary(nil, &messages.Summary{Tag: "t", Tags: []dag.Label{{Name: "a", Value: "b"}}, Counts: messages.Counts{1, 2}}, 9),
		appendAttempts([]messages.AttemptRecord{{Task: 1, Node: "n", RC: 3, MaxRSSKB: 1, Stdout: messages.Output{Inline: []byte("x")}, Stderr: messages.Output{Size: 9}}, {Task: 2, Attempt: 1, Node: "n"}}),
		p.appendPacked(appendCreation(nil, &Creation{IdempotencyKey: "k"}, []byte("r")), doc),
		p.appendPacked(setHead(nil, &GeneratedSet{Generator: 1}), doc),
		appendHeader(nil, 7, []byte("header"), &snapshotContents{chunks: chunkStamps{3, 0, 9}, sets: 2}),
		appendRecords(nil, []byte("records"), &GeneratedSet{N: 3}, 4), appendChunk(nil, 3, []byte("chunk")),
		appendKeyRow(nil, 3, [32]byte{1}, 70), appendMark(nil, ClockMark{1, 2, 3, "boot", true}),
		stagedParts([]mutation{{Key: []byte("k"), Value: []byte("v")}, {Key: []byte("d"), Delete: true}}, 1, 100)[0].Value,
	} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		if s, next, err := decodeSummary(1, v); err == nil {
			again, _, err := decodeSummary(1, appendSummary(nil, s, next))
			if err != nil || !reflect.DeepEqual(again, s) {
				t.Fatalf("summary: %+v, %v, want %+v", again, err, s)
			}
		}
		if list, err := decodeAttempts(nil, v); err == nil {
			again, err := decodeAttempts(nil, appendAttempts(list))
			if err != nil || !reflect.DeepEqual(again, list) {
				t.Fatalf("attempts: %+v, %v, want %+v", again, err, list)
			}
		}
		if ops, err := decodeStaged(v); err == nil && len(ops) > 0 {
			var joined []byte
			for _, p := range stagedParts(ops, 1, 16) {
				v, err := unsealRow(p.Key, p.Value)
				if err != nil {
					t.Fatal(err)
				}
				joined = append(joined, v...)
			}
			if again, err := decodeStaged(joined); err != nil || len(again) != len(ops) {
				t.Fatalf("staged: %+v, %v, want %+v", again, err, ops)
			}
		}
		_, _, _ = p.decodeDefinition(1, v)
		_, _ = p.decodeSet(1, 1, v)
		_, _, _, _ = decodeHeader(1, v)
		_, _, _, _ = decodeKeyRow(v)
		if m, err := decodeMark(v); err == nil {
			if again, err := decodeMark(appendMark(nil, m)); err != nil || again != m {
				t.Fatalf("mark: %+v, %v, want %+v", again, err, m)
			}
		}
		_, _, _ = decodeRecords(v)
		_, _, _ = decodeChunk(v)
	})
}
