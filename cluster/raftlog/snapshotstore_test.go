package raftlog

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestNoSnapshotFollowsAFailedRestore: a machine may have the rows of a received snapshot although its Restore
// returns an error. The record of that snapshot is all that Open can tell from where the rows come, so a
// leader that sends a newer one before the group has ended must not replace it.
func TestNoSnapshotFollowsAFailedRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openSnapshots(vfs.OS{}, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.applier = &applier{snapshots: s, fail: func(error) {}}
	receive := func(index uint64) error {
		sink, err := s.Create(raft.SnapshotVersionMax, index, 2, raft.Configuration{}, 1, nil)
		if err != nil {
			return err
		}
		if _, err := sink.Write([]byte("rows")); err != nil {
			return err
		}
		return sink.Close()
	}
	const first, newer = 79, 99
	if err := receive(first); err != nil {
		t.Fatal(err)
	}
	injected := errors.New("injected")
	_ = s.applier.latchError(injected)
	if err := receive(newer); !errors.Is(err, injected) {
		t.Errorf("a snapshot after the failed restore: %v", err)
	}
	s, err = openSnapshots(vfs.OS{}, dir, first)
	if err != nil {
		t.Fatal(err)
	}
	if own, ok := s.ownRecord(); !ok || own.Index != first {
		t.Errorf("the replica opens with the snapshot of entry %d, %t", own.Index, ok)
	}
}
