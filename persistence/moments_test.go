package persistence

import (
	"fmt"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// A read does not wait for the commit that is under way, and sees nothing of it.
func TestReadsDoNotWaitForCommits(t *testing.T) {
	s, err := OpenBadger(Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(val string) {
		done := make(chan error, 1)
		s.queue.push(&item{ops: []op{{key: []byte("?key"), val: []byte(val)}}, done: func(err error) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	// A commit whose rows are in the tree already, and that is not durable yet.
	at := s.moments.next()
	if err := s.write([]op{{key: []byte("?key"), val: []byte("two")}}, at); err != nil {
		t.Fatal(err)
	}
	if v, err := s.get([]byte("?key")); err != nil || string(v) != "one" {
		t.Errorf("before it is durable: %q, %v", v, err)
	}
	s.db.SetDiscardTs(s.moments.advance(at))
	if v, err := s.get([]byte("?key")); err != nil || string(v) != "two" {
		t.Errorf("after: %q, %v", v, err)
	}
}

// What a read that is under way sees stays, whatever is written and compacted
// meanwhile.
func TestAReadKeepsItsMoment(t *testing.T) {
	s, err := OpenBadger(Config{Dir: t.TempDir(), memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write := func(round int) {
		ops := make([]op, 100)
		for i := range ops {
			ops[i] = op{key: fmt.Appendf(nil, "?%03d", i), val: fmt.Appendf(nil, "%d %0900d", round, i)}
		}
		if err := s.deleteStep(ops); err != nil { // bare rows, as deletions are
			t.Fatal(err)
		}
	}
	write(0)
	err = s.view(func(txn *badger.Txn) error {
		for round := 1; round <= 200; round++ {
			write(round)
		}
		if err := s.db.Flatten(2); err != nil {
			return err
		}
		for i := range 100 {
			v, err := getTxn(txn, fmt.Appendf(nil, "?%03d", i))
			if err != nil || string(v) != fmt.Sprintf("0 %0900d", i) {
				return fmt.Errorf("row %d is %.20q, %v", i, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	write(201)
	if v, err := s.get([]byte("?007")); err != nil || string(v) != fmt.Sprintf("201 %0900d", 7) {
		t.Errorf("now: %.20q, %v", v, err)
	}
}

func TestMoments(t *testing.T) {
	m := newMoments(7)
	if n := m.next(); n != 8 {
		t.Errorf("the next commit is %d", n)
	}
	a := m.begin()
	if oldest := m.advance(8); oldest != 7 {
		t.Errorf("oldest %d while 7 is read", oldest)
	}
	b, c := m.begin(), m.begin()
	m.end(a)
	if oldest := m.advance(9); oldest != 8 || b != 8 || c != 8 {
		t.Errorf("oldest %d while %d and %d are read", oldest, b, c)
	}
	m.end(b)
	m.end(c)
	if oldest := m.advance(10); oldest != 10 || len(m.reads) != 0 {
		t.Errorf("oldest %d with nobody reading, %v", oldest, m.reads)
	}
}
