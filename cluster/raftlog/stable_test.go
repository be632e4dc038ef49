package raftlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// castVote does what the library does to grant a vote: the term first, then the vote by two calls.
func castVote(s *voteStore, term uint64, candidate string) error {
	return errors.Join(
		s.SetUint64([]byte(keyCurrentTerm), term),
		s.SetUint64([]byte(keyVoteTerm), term),
		s.Set([]byte(keyVoteCandidate), []byte(candidate)))
}

// TestVoteIsCutBetweenItsCalls is the first kind of failure: the power fails at any step of a vote. The
// term and the candidate that are found later belong together, and a vote that was granted is there.
func TestVoteIsCutBetweenItsCalls(t *testing.T) {
	dir, cuts := t.TempDir(), t.TempDir()
	disk, err := faults.NewDisk(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := faults.New(disk)
	s, err := openVotes(files, dir, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	granted := map[uint64]string{} // durable for sure
	candidate := func(term uint64) string { return fmt.Sprintf("n%d", term) }
	count := 0
	check := func(least uint64) {
		count++
		into := filepath.Join(cuts, fmt.Sprint(count))
		if err := disk.PowerCut(into, nil); err != nil {
			t.Fatal(err)
		}
		found, err := openVotes(vfs.OS{}, into, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatalf("after cut %d: %v", count, err)
		}
		term, _ := found.GetUint64([]byte(keyVoteTerm))
		who, _ := found.Get([]byte(keyVoteCandidate))
		if term > 0 && string(who) != candidate(term) || term == 0 && who != nil {
			t.Errorf("after cut %d: vote of term %d for %q", count, term, who)
		}
		if term < least {
			t.Errorf("after cut %d: the vote of term %d is lost, found %d", count, least, term)
		}
		if current, _ := found.GetUint64([]byte(keyCurrentTerm)); current < term {
			t.Errorf("after cut %d: term %d with a vote of term %d", count, current, term)
		}
	}
	var least uint64
	files.Add(faults.Rule{Do: func(faults.Call) { check(least) }})
	for term := uint64(2); term < 6; term++ {
		if err := s.SetUint64([]byte(keyCurrentTerm), term); err != nil {
			t.Fatal(err)
		}
		if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		check(least) // between the two calls
		if err := s.Set([]byte(keyVoteCandidate), []byte(candidate(term))); err != nil {
			t.Fatal(err)
		}
		least, granted[term] = term, candidate(term)
		check(least)
	}
	if count < 30 {
		t.Errorf("only %d cuts", count)
	}
}

// TestDamagedVoteIsAnError proves that no damage of the file is taken for another vote.
func TestDamagedVoteIsAnError(t *testing.T) {
	dir := t.TempDir()
	fail := func(err error) { t.Error(err) }
	s, err := openVotes(vfs.OS{}, dir, fail)
	if err != nil {
		t.Fatal(err)
	}
	if err := castVote(s, 7, "n2"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, voteFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := openVotes(vfs.OS{}, dir, fail); err == nil {
			t.Errorf("%s: vote %+v", what, s.durable)
		}
	}
	for length := range len(good) {
		try(fmt.Sprintf("cut at %d", length), good[:length])
	}
	for bit := range 8 * len(good) {
		damaged := append([]byte(nil), good...)
		damaged[bit/8] ^= 1 << (bit % 8)
		try(fmt.Sprintf("bit %d", bit), damaged)
	}
	try("longer", append(append([]byte(nil), good...), 0))
}

// TestVoteErrorIsLatched proves that no write is tried after one has failed, and that a vote whose
// write failed is not reported.
func TestVoteErrorIsLatched(t *testing.T) {
	files := faults.New(vfs.OS{})
	failures := 0
	s, err := openVotes(files, t.TempDir(), func(error) { failures++ })
	if err != nil {
		t.Fatal(err)
	}
	if err := castVote(s, 3, "n1"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte(keyVoteTerm), 4); err != nil {
		t.Fatal(err)
	}
	files.Add(faults.Rule{Op: faults.Sync, N: 1})
	for range 2 {
		err := castVote(s, 4, "n2")
		if !errors.Is(err, faults.ErrInjected) {
			t.Errorf("vote after a failed sync: %v", err)
		}
	}
	term, _ := s.GetUint64([]byte(keyVoteTerm))
	who, _ := s.Get([]byte(keyVoteCandidate))
	if term != 3 || string(who) != "n1" || failures != 1 {
		t.Errorf("vote of term %d for %q, %d failures", term, who, failures)
	}
	for _, err := range []error{s.Set([]byte("other"), nil), s.SetUint64([]byte("other"), 1)} {
		if err == nil {
			t.Error("an unknown key was accepted")
		}
	}
}
