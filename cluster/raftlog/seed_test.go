package raftlog_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// giveRows writes the rows of a seed before the replica is opened.
func giveRows(t *testing.T, r *replica, index uint64) {
	t.Helper()
	m, err := raftlogtest.OpenMachine(filepath.Join(r.dir, "rows"))
	if err == nil {
		err = m.Apply(index, 0, []byte("of=the seed\n"))
	}
	if err == nil {
		_, err = m.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSeededGroup: a group begins with the rows that its voters share. A crash may separate the two writes of
// its first open, epochs are higher than those of the seed, and a replica that joins without the rows gets them.
func TestSeededGroup(t *testing.T) {
	withGroup(t, 0, fastSettings(), func(c *cluster) {
		c.seed = &raftlog.Seed{Term: 40}
		voters := []raftlog.NodeID{"n1", "n2", "n3"}
		for _, id := range voters {
			r := c.add(id)
			giveRows(t, r, raftlog.SeedIndex)
		}
		// The state after a crash between the two writes. Alone the replica gives no vote.
		first := c.all[0]
		c.open(first, voters...)
		c.crash(first)
		for _, name := range []string{"snapshot", "log"} {
			if err := os.RemoveAll(filepath.Join(first.dir, "group", name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range c.all {
			c.open(r, voters...)
		}

		leader, epoch := c.lead()
		if epoch <= c.seed.Term {
			t.Errorf("epoch %d after rows of epoch %d", epoch, c.seed.Term)
		}
		if index := c.put(leader, epoch, "after", "it"); index <= raftlog.SeedIndex {
			t.Errorf("the first rows are those of entry %d", index)
		}
		joined := c.add("n4")
		c.open(joined)
		members := leader.group.Members()
		members.Learners = append(members.Learners, joined.id)
		c.change(leader, epoch, members)
		testenv.EventuallyWithin(t, patience, "the new replica has all rows", func() bool { return joined.machine.Row("after") == "it" })
		if got := joined.machine.Row("of"); got != "the seed" {
			t.Errorf("the new replica has %q of the seed", got)
		}
		c.converge()
		for _, r := range c.all { // an opened group ignores its seed
			c.crash(r)
			c.open(r, voters...)
		}
		c.converge()
	})
}

// TestSeedNeedsItsRows: a replica that lacks the rows of the seed, or has others, is not opened.
func TestSeedNeedsItsRows(t *testing.T) {
	c := newCluster(t, 0, fastSettings())
	c.seed = &raftlog.Seed{Term: 1}
	for index, id := range []raftlog.NodeID{"empty", "", "later"} {
		if id == "" {
			continue
		}
		r := c.add(id)
		if index > 0 {
			giveRows(t, r, uint64(index))
		}
		if err := c.tryOpen(r, id); err == nil || !strings.Contains(err.Error(), "want a term and the rows of entry 1") {
			t.Errorf("%s: %v", id, err)
		}
	}
}
