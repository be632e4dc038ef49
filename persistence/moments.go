package persistence

import "sync"

// moments numbers the store's commits and gives each read the newest one that is
// durable. Badger's own numbering would have a read wait for the commit that is
// under way, and so for the disk; here reads wait for nothing, and never see a row
// that is not durable yet.
type moments struct {
	mu      sync.Mutex
	durable uint64         // of the newest durable commit
	reads   map[uint64]int // reads under way, by their moment
}

func newMoments(durable uint64) *moments {
	return &moments{durable: durable, reads: make(map[uint64]int)}
}

// next is the number of the next commit. There is one at a time.
func (m *moments) next() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable + 1
}

// advance notes that the commit of this number is durable. The result is the oldest
// moment that anybody still reads, or this one: what was replaced before it may go.
func (m *moments) advance(to uint64) (oldest uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = to
	oldest = to
	for at := range m.reads {
		oldest = min(oldest, at)
	}
	return oldest
}

// begin gives a read its moment. Give it back by end.
func (m *moments) begin() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads[m.durable]++
	return m.durable
}

func (m *moments) end(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reads[at]--; m.reads[at] == 0 {
		delete(m.reads, at)
	}
}
