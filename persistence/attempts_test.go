package persistence

import (
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// appendAttempts makes a value as the store does.
func appendAttempts(list []messages.AttemptRecord) []byte {
	v, c := []byte{attemptsV2}, attemptCoder{}
	for i := range list {
		v = c.append(v, &list[i])
	}
	return v
}

// unlikeAttempts are records that differ from each other as much as they can.
func unlikeAttempts() []messages.AttemptRecord {
	return []messages.AttemptRecord{
		{},
		{Task: math.MaxUint32, Attempt: math.MaxUint32, Result: messages.AttemptRejected, RC: math.MinInt32, Start: math.MaxInt64, Stop: math.MinInt64,
			ExecutorLog: "log", Node: "n", MaxRSSKB: -1, UserCPU: time.Hour, SystemCPU: 1},
		{Start: math.MinInt64, Stop: math.MaxInt64, Node: "n", RC: 1},
		{Stdout: messages.Output{Inline: []byte{}}, Stderr: messages.Output{Size: 3, Head: 3, Inline: []byte("abc")}},
		{Task: 1, Attempt: 1, Result: messages.AttemptFailed, SystemCPU: 5, Node: "m"},
		{Task: 2, Attempt: 1, Node: "m", Stdout: messages.Output{Size: 1 << 60, Head: 1, Tail: 2, Offset: 1 << 50}},
		{Task: 3, Attempt: 1, Node: "m", Stderr: messages.Output{Size: 1 << 60, Head: 1 << 60}, Copy: &messages.OutputCopy{Node: "n", Stdout: -1, Stderr: 1 << 50}},
		{Task: 4, Attempt: 1, Copy: &messages.OutputCopy{}},
	}
}

func TestAttemptsRoundTrip(t *testing.T) {
	want := unlikeAttempts()
	v := appendAttempts(want)
	got, err := decodeAttempts(nil, v)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	clear(v)
	if string(got[3].Stderr.Inline) != "abc" || got[1].Node != "n" {
		t.Error("a record refers to the stored value")
	}
}

// TestAttemptsAreSmall: the records of neighbouring tasks that succeed, as no-op tasks
// do a microsecond apart, take a few bytes each.
func TestAttemptsAreSmall(t *testing.T) {
	const n = 1000
	list := make([]messages.AttemptRecord, n)
	for i := range list {
		start := int64(1.8e18) + int64(i)*1500
		list[i] = messages.AttemptRecord{Task: uint32(5_000_000 + i), Attempt: 1, Start: start, Stop: start + 400}
	}
	if size := len(appendAttempts(list)); size > 6*n {
		t.Errorf("%d records take %d bytes", n, size)
	}
}
