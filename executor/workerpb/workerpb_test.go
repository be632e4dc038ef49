package workerpb

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

var (
	key    = messages.AttemptKey{Run: 1 << 40, Task: 1<<32 - 1, Attempt: 3}
	report = executor.Report{Key: key, Kind: executor.Finished, At: 7, GrantedAt: 12, Stdout: []byte{}, Record: messages.AttemptRecord{
		Task: key.Task, Attempt: 3, Result: messages.AttemptRejected, RC: -1, Start: 5, Stop: 6, ExecutorLog: "why", Node: "here",
		MaxRSSKB: 9, UserCPU: time.Second, SystemCPU: time.Minute,
		Stdout: messages.Output{Size: 9, Head: 4, Tail: 4, Inline: []byte("12346789")},
		Stderr: messages.Output{Size: 1 << 40, Head: 8 << 20, Tail: 8 << 20, Offset: 1 << 50},
	}}
	order = executor.Order{Key: key, Name: "n", Command: []string{"a", "", "c"}, Shell: "s", UseShell: true, Environment: []string{"K=V"},
		Dir: "/", Timeout: time.Hour, CPUMillis: 1, MemoryBytes: 2, Capture: true, GrantedAt: 11}
)

// samples holds, for each item, its encoding and how it is read.
func samples() map[Type]struct {
	item  []byte
	want  any
	parse func([]byte) (any, error)
} {
	type sample = struct {
		item  []byte
		want  any
		parse func([]byte) (any, error)
	}
	add := func(item []byte, want any, parse func([]byte) (any, error)) sample { return sample{item, want, parse} }
	return map[Type]sample{
		TypeOrder:    add(AppendOrder(nil, &order), order, as(ParseOrder)),
		TypeKill:     add(AppendKill(nil, Kill{key, time.Second}), Kill{key, time.Second}, as(ParseKill)),
		TypeAck:      add(AppendKey(nil, TypeAck, key), key, as(ParseKey)),
		TypeStarted:  add(AppendStarted(nil, Started{key, -3, 7, 8}), Started{key, -3, 7, 8}, as(ParseStarted)),
		TypeCapacity: add(AppendAmount(nil, TypeCapacity, Amount{1, 2}), Amount{1, 2}, as(ParseAmount)),
		TypeDeferred: add(AppendDeferred(nil, Deferred{"fork", 3, "why"}), Deferred{"fork", 3, "why"}, as(ParseDeferred)),
		TypeHello:    add(AppendHello(nil, Hello{"v", "n", 3}), Hello{"v", "n", 3}, as(ParseHello)),
		TypeFinished: add(AppendFinished(nil, &report), report, as(ParseFinished)),
		TypeHeader:   add(AppendHeader(nil, Header{"b", 1, 2, "m"}), Header{"b", 1, 2, "m"}, as(ParseHeader)),
		TypeBorn:     add(AppendBorn(nil, Born{key, 1, 2}), Born{key, 1, 2}, as(ParseBorn)),
		TypeLogOpen:  add(AppendLogOpen(nil, LogOpen{key, messages.Stderr}), LogOpen{key, messages.Stderr}, as(ParseLogOpen)),
		TypeLogRead:  add(AppendLogRead(nil, LogRead{1, 2}), LogRead{1, 2}, as(ParseLogRead)),
		TypeLogData: add(AppendLogData(nil, LogData{1, 2, true, true, true, []byte("x")}),
			LogData{1, 2, true, true, true, []byte("x")}, as(ParseLogData)),
		TypeLogError: add(AppendLogError(nil, LogError{true, "t"}), LogError{true, "t"}, as(ParseLogError)),
	}
}

func as[T any](parse func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return parse(b) }
}

func TestItemsSurviveTheWay(t *testing.T) {
	var frame []byte
	for want, s := range samples() {
		got, body, rest, err := Next(append(s.item, "rest"...))
		if err != nil || got != want || string(rest) != "rest" {
			t.Fatalf("type %d: got %d, rest %q, %v", want, got, rest, err)
		}
		v, err := s.parse(body)
		if err != nil || !reflect.DeepEqual(v, s.want) {
			t.Errorf("type %d: %+v, want %+v; %v", want, v, s.want, err)
		}
		if longer, err := s.parse(append(append([]byte{}, body...), "later"...)); err != nil || !reflect.DeepEqual(longer, s.want) {
			t.Errorf("type %d with fields of a later version: %+v, %v", want, longer, err)
		}
		for n := range body {
			if v, err := s.parse(body[:n]); err == nil && want != TypeFinished {
				t.Errorf("type %d cut to %d bytes: %+v", want, n, v)
			}
		}
		frame = append(frame, s.item...)
	}
	frame = AppendEmpty(frame, TypeSynced)
	for n := len(samples()) + 1; n > 0; n-- {
		var err error
		if _, _, frame, err = Next(frame); err != nil {
			t.Fatal(err)
		}
	}
	if len(frame) != 0 {
		t.Errorf("%d bytes are left of the frame", len(frame))
	}
}

func TestLengthsOfItems(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 1<<14 - 1, 1 << 14, 1<<21 - 1, 1 << 21, 1 << 22} {
		body := bytes.Repeat([]byte{7}, n)
		item := AppendItem([]byte("x"), TypeOrder, func(dst []byte) []byte { return append(dst, body...) })
		typ, got, rest, err := Next(item[1:])
		if err != nil || typ != TypeOrder || !bytes.Equal(got, body) || len(rest) != 0 || item[0] != 'x' {
			t.Errorf("%d bytes: type %d, %d bytes, %d left, %v", n, typ, len(got), len(rest), err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, parse := range map[string]func() error{
		"no frame":          func() error { _, _, _, err := Next(nil); return err },
		"length beyond end": func() error { _, _, _, err := Next([]byte{1, 2, 0}); return err },
		"huge list":         func() error { _, err := ParseOrder([]byte{1, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}); return err },
		"task of 33 bits":   func() error { _, err := ParseKey([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x1f, 1}); return err },
		"protocol":          func() error { _, err := ParseHeader([]byte{9, 0, 0, 0}); return err },
		"result":            func() error { _, err := ParseFinished([]byte{1, 1, 1, 0, 99}); return err },
		"marshal":           func() error { _, err := Codec{}.Marshal("x"); return err },
		"unmarshal":         func() error { return Codec{}.Unmarshal(nil, "x") },
	} {
		if err := parse(); err == nil || strings.Contains(err.Error(), "failed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFrame(f *testing.F) {
	all := samples()
	for _, s := range all {
		f.Add(s.item)
	}
	f.Add(append(AppendEmpty(nil, TypeSynced), 200, 1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for len(frame) > 0 {
			typ, body, rest, err := Next(frame)
			if err != nil {
				return
			}
			if s, ok := all[typ]; ok {
				_, _ = s.parse(body)
			}
			if typ == TypeFinished {
				if rep, err := ParseFinished(body); err == nil {
					_, again, _, _ := Next(AppendFinished(nil, &rep))
					if back, err := ParseFinished(again); err != nil || !reflect.DeepEqual(back, rep) {
						t.Errorf("%+v came back as %+v, %v", rep, back, err)
					}
				}
			}
			frame = rest
		}
	})
}

func BenchmarkFinished(b *testing.B) {
	dst := AppendFinished(nil, &report)
	for b.Loop() {
		dst = AppendFinished(dst[:0], &report)
		_, body, _, _ := Next(dst)
		if _, err := ParseFinished(body); err != nil {
			b.Fatal(err)
		}
	}
}
