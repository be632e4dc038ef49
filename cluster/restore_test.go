package cluster

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// restoreViews makes a seed of views, and returns its folder.
func restoreViews(t *testing.T, views []*PartitionView, dropsWorkers bool) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "seed")
	moment := uint64(0)
	for _, v := range views {
		moment = max(moment, v.CommitNumber())
	}
	s := NewRestoredSeed(dir, "a test", moment)
	s.DropsWorkers = dropsWorkers
	defer s.Close()
	for _, v := range views {
		if err := s.Begin(v.Term); err != nil {
			t.Fatal(err)
		}
		err := v.Rows(t.Context(), func(key, value []byte) error { s.Row(key, value); return nil })
		digest, rows, derr := v.Digest()
		if err := errors.Join(err, derr); err != nil {
			t.Fatal(err)
		}
		if _, err := s.End(digest); err != nil {
			t.Fatal(err)
		}
		if got := s.Partitions[v.Partition]; got.Rows != rows && !dropsWorkers {
			t.Errorf("partition %d: %d rows of %d", v.Partition, got.Rows, rows)
		}
	}
	if err := s.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestClusterOfTheRowsOfAnother: a new cluster begins with views that were taken under load. It has every run of
// them, goes on with those that were unfinished, leads in higher terms, and gives new runs higher IDs. It is another
// cluster, and its replicas are equal.
func TestClusterOfTheRowsOfAnother(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 2)
	load := old.startLoad(4)
	load.awaitAccepted(0, 30)
	load.awaitAccepted(1, 30)
	accepted := load.acceptedSoFar()
	views := old.nodes[1].openViews()
	seed := restoreViews(t, views, false)
	term := max(views[0].Term, views[1].Term)
	closeViews(views)
	load.stop()
	former := old.nodes[0].running().Cluster()
	old.each((*testNode).close)

	c := newTestCluster(t, 3, 2)
	for _, n := range c.nodes {
		n.plant(seed)
	}
	c.each((*testNode).start)
	if now := c.nodes[0].running().Cluster(); now == former {
		t.Errorf("the new cluster has the ID of the former one, %v", now)
	}
	c.awaitOwnTable()
	c.checkRuns(accepted)
	c.checkReplicas()
	for p := range 2 {
		newest := accepted[p][len(accepted[p])-1]
		for _, id := range c.mustSubmit(p, 1) {
			if id <= newest || int(id%2) != p {
				t.Errorf("partition %d: a new run has the ID %d after %d", p, id, newest)
			}
			accepted[p] = append(accepted[p], id)
		}
		if _, epoch := c.leaderOf(p); epoch <= term {
			t.Errorf("partition %d is led in epoch %d, and the rows are of terms up to %d", p, epoch, term)
		}
	}
	c.checkRuns(accepted)
}

// TestRowsOfWorkersInANewCluster: the workers of a cluster are not those of one that is restored from its backup, and
// its replicas are equal all the same. A cluster that goes on with what survived keeps them, because their tasks may
// still run.
func TestRowsOfWorkersInANewCluster(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 1)
	accepted := [][]messages.RunID{old.mustSubmit(0, 3)}
	workers := []string{"n1-1f3a", "w.1"}
	testenv.RepeatWithin(t, patience, "a leader writes the rows", func() bool { // an election may come in between
		leader, _ := old.leaderOf(0)
		return leader.term.Load().Rows.AddWorkers(workers...) == nil
	})
	old.checkRuns(accepted)
	old.checkReplicas()
	views := old.nodes[1].openViews()
	seeds := map[string][]string{restoreViews(t, views, true): nil}
	closeViews(views)
	old.each((*testNode).close)
	recovered, _ := recoverNodes(t, old.nodes[0])
	seeds[recovered] = workers
	for seed, want := range seeds {
		c := newTestCluster(t, 3, 1)
		for _, n := range c.nodes {
			n.plant(seed)
		}
		c.each((*testNode).start)
		c.checkRuns(accepted)
		c.checkReplicas()
		leader, _ := c.leaderOf(0)
		if got := leader.term.Load().Workers; !slices.Equal(got, want) {
			t.Errorf("the new cluster has the workers %v, want %v", got, want)
		}
		c.each((*testNode).close)
	}
}

// TestRestoredSeedIsWhole: rows that are not those of the digest, rows out of order and a partition that is given up make no seed, and
// leave no work behind.
func TestRestoredSeedIsWhole(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 1)
	old.mustSubmit(0, 1)
	views := old.nodes[0].openViews()
	defer closeViews(views)
	digest, _, err := views[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		write func(s *RestoredSeed, key, value []byte, n int)
		want  string
	}{
		"all": {func(s *RestoredSeed, key, value []byte, _ int) { s.Row(key, value) }, ""},
		"one is missing": {func(s *RestoredSeed, key, value []byte, n int) {
			if n != 3 {
				s.Row(key, value)
			}
		}, "in place of"},
		"one is changed": {func(s *RestoredSeed, key, value []byte, n int) {
			if n == 3 {
				value = append([]byte{value[0] ^ 1}, value[1:]...)
			}
			s.Row(key, value)
		}, "checksum"},
	} {
		s := NewRestoredSeed(filepath.Join(t.TempDir(), "seed"), "a test", views[0].CommitNumber())
		if err := s.Begin(views[0].Term); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := views[0].Rows(t.Context(), func(key, value []byte) error { n++; tc.write(s, key, value, n); return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := s.End(digest); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		s.Close()
	}
	s := NewRestoredSeed(filepath.Join(t.TempDir(), "seed"), "a test", 7)
	if err := s.Begin(1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if left, err := filepath.Glob(filepath.Join(s.dir, "p", "0", "db-1*")); err != nil || len(left) > 0 {
		t.Errorf("a partition that was given up has left %q, %v", left, err)
	}
}
