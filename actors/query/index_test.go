package query

import (
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A watcher is woken when its run is inserted, published, removed or deleted, and a watch of a
// run that is not in the index leaves no entry behind.
func TestWatchersAreWoken(t *testing.T) {
	x := NewIndex(messages.Numbering{})
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"inserted", func() { x.Insert(&messages.Summary{ID: 7}) }},
		{"published", func() { x.Entry(7).Publish(&messages.Summary{ID: 7, LastUpdate: 1}) }},
		{"removed", func() { x.Remove(7) }},
		{"deleted", func() { x.WakeDeleted(7) }},
	} {
		first, leaveFirst := x.Watch(7)
		second, leaveSecond := x.Watch(7)
		if isClosed(first) || isClosed(second) {
			t.Errorf("%s: woken before", c.what)
		}
		c.change()
		if !isClosed(first) || !isClosed(second) {
			t.Errorf("%s: not woken", c.what)
		}
		leaveFirst()
		leaveSecond()
		if n := len(x.pending); n != 0 {
			t.Errorf("%s: %d pending watches are left", c.what, n)
		}
	}
	_, leave := x.Watch(8)
	_, leaveToo := x.Watch(8)
	leave()
	if n := len(x.pending); n != 1 {
		t.Errorf("%d pending watches while one watcher waits", n)
	}
	if leaveToo(); len(x.pending) != 0 {
		t.Errorf("%d pending watches are left", len(x.pending))
	}
}

// The index is listed page by page, from any run on, while runs are inserted and removed.
func TestIndexIsListedInPages(t *testing.T) {
	x := NewIndex(messages.Numbering{})
	const last = 1<<64 - 1
	var want []messages.RunID
	for i := range messages.RunID(2*indexPage + 7) {
		x.Insert(&messages.Summary{ID: 3 * i})
		want = append(want, 3*i)
	}
	x.Insert(&messages.Summary{ID: last})
	want = append(want, last)
	for _, at := range []int{0, 1, indexPage, indexPage + 1, len(want) - 1} {
		from := messages.RunID(0)
		if at > 0 {
			from = want[at-1] + 1
		}
		var got []messages.RunID
		for s := range x.SummariesFrom(from) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, want[at:]) {
			t.Errorf("from %d on: %d runs, want %d", from, len(got), len(want)-at)
		}
	}
	seen := 0
	for s := range x.SummariesFrom(0) {
		if seen++; s.ID != last {
			x.Remove(s.ID)
		}
		if seen > len(want)/2 {
			break
		}
	}
	if seen != len(want)/2+1 || x.Len() != len(want)-seen {
		t.Errorf("%d seen, %d left", seen, x.Len())
	}
}
