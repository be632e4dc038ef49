package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// makeSeed makes the seed of a single server with so many runs, each with an idempotency key, and returns its
// folder and the IDs of the runs.
func makeSeed(t *testing.T, runs, partitions int) (dir string, ids []messages.RunID) {
	t.Helper()
	config := persistence.Config{HasSmallMemTables: true, Dir: filepath.Join(t.TempDir(), "db")}
	for range 3 { // the epochs of a single server count its starts
		store, err := persistence.OpenStore(config)
		if err == nil {
			err = store.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := persistence.OpenStore(config)
	if err != nil {
		t.Fatal(err)
	}
	out, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	node, err := actors.Start(actors.Config{Store: store, Outputs: out, CPUMillis: 2000, MemoryBytes: 1 << 30, KillGrace: time.Second,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"noop": func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range runs {
		sub := plan(t, chain)
		sub.IdempotencyKey = fmt.Sprintf("key %d", i)
		id, err := node.Submit(ctx, sub)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if _, err := node.Await(ctx, id, func(s *messages.Summary) bool { return s.State.Final() }); err != nil {
			t.Fatal(err)
		}
	}
	for _, end := range []func() error{func() error { return node.Close(ctx) }, out.Close, store.Close} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	return seedOf(t, config, partitions), ids
}

// seedOf makes a seed of the rows of a single server.
func seedOf(t *testing.T, config persistence.Config, partitions int) (dir string) {
	t.Helper()
	store, err := persistence.OpenStore(config)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "seed")
	next, err := store.NextRun()
	if err == nil {
		err = store.Backup(func(view *persistence.ReadView) error {
			seed := NewSeed(view, "a folder")
			if err := seed.WritePartitions(t.Context(), dir, view, partitions, next); err != nil {
				return err
			}
			return seed.Write(dir)
		})
	}
	if err == nil {
		err = store.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// plant gives a node a copy of a seed.
func (n *testNode) plant(seed string) {
	n.cluster.t.Helper()
	if err := os.CopyFS(n.dir, os.DirFS(seed)); err != nil {
		n.cluster.t.Fatal(err)
	}
}

// TestSeededCluster: a cluster begins with the runs of a single server. New runs have higher IDs than all of
// them, its replicas are equal, and a node that replaces another one gets the runs as well.
func TestSeededCluster(t *testing.T) {
	t.Parallel()
	seed, ids := makeSeed(t, 12, 2)
	c := newTestCluster(t, 3, 2)
	for _, n := range c.nodes {
		n.plant(seed)
	}
	c.each((*testNode).start)
	accepted := make([][]messages.RunID, 2)
	for _, id := range ids {
		accepted[id%2] = append(accepted[id%2], id)
	}
	c.checkRuns(accepted)
	c.checkReplicas()
	for p := range 2 {
		for _, id := range c.mustSubmit(p, 2) {
			if id <= ids[len(ids)-1] || int(id%2) != p {
				t.Errorf("partition %d: a new run has the ID %d", p, id)
			}
			accepted[p] = append(accepted[p], id)
		}
		if _, epoch := c.leaderOf(p); epoch <= 5 {
			t.Errorf("partition %d is led in epoch %d: the server was started 5 times", p, epoch)
		}
	}
	// Keys of the server, at the leader of their partition: those of runs there are known, and the others name
	// their runs, which every node can ask for.
	foreign := 0
	submit := func(sub *messages.Submission) (id messages.RunID, err error) { // again if an election comes in between
		partition := int(messages.KeyPartition(messages.HashKey(sub.IdempotencyKey), 2))
		testenv.RepeatWithin(t, patience, "a leader answers", func() bool {
			leader, _ := c.leaderOf(partition)
			engine, _, ok := leader.running().Engine(partition)
			if !ok {
				return false
			}
			id, err = engine.Submit(t.Context(), sub)
			return err == nil || !slices.Contains([]messages.ErrorCode{messages.NotLeader, messages.Unavailable, messages.OutcomeUnknown}, code(err))
		})
		return id, err
	}
	for i, id := range ids {
		sub := plan(t, chain)
		sub.IdempotencyKey = fmt.Sprintf("key %d", i)
		got, err := submit(sub)
		if named, ok := errors.AsType[*messages.ForeignKeyError](err); ok && named.IsSameBody {
			got, err = named.Run, nil
			foreign++
			if foreign == 1 { // as if the run was deleted, which frees the key
				sub.DeletedRun = &id
				made, err := submit(sub)
				again, againErr := submit(sub)
				if made <= ids[len(ids)-1] || again != made || err != nil || againErr != nil {
					t.Errorf("the key of a deleted run: runs %d and %d, %v, %v", made, again, err, againErr)
				}
			}
		}
		if err != nil || got != id {
			t.Errorf("key %d: run %d, %v, want %d", i, got, err, id)
		}
	}
	if foreign == 0 || foreign == len(ids) {
		t.Errorf("%d of %d keys are of other partitions than their runs", foreign, len(ids))
	}
	for _, n := range c.nodes {
		for run, want := range map[messages.RunID]bool{ids[0]: true, ids[1]: true, 1000: false, 1001: false} {
			var has bool
			testenv.EventuallyWithin(t, patience, n.name+" has the leader's answer", func() bool {
				var err error
				has, err = n.running().HasRun(t.Context(), run)
				return err == nil
			})
			if has != want {
				t.Errorf("%s: run %d: %v", n.name, run, has)
			}
		}
	}

	n := c.nodes[2]
	n.wipe()
	n.replace = true
	n.start()
	n.awaitAdmission()
	c.checkRuns(accepted)
	c.checkReplicas()
}

// TestSeedsThatDiffer: nodes form a cluster with copies of one seed alone, and a node that replaces another
// one begins without it.
func TestSeedsThatDiffer(t *testing.T) {
	t.Parallel()
	seeded := func() map[string]*introduction {
		all := introductions()
		for _, i := range all {
			i.Seed, i.SeedTerm, i.Base = "5eed", 4, 70
		}
		return all
	}
	all := seeded()
	formed, err := decideFormation(all["n1"], others(all, "n1"))
	if err != nil || formed == nil || formed.Seed != "5eed" || formed.SeedTerm != 4 || formed.Base != 70 {
		t.Fatalf("%+v, %v", formed, err)
	}
	plain, err := decideFormation(introductions()["n1"], others(introductions(), "n1"))
	if err != nil || plain.Cluster == formed.Cluster {
		t.Errorf("the same nodes form the same cluster without the seed: %v", err)
	}
	lost := seeded()
	lost["n3"].identity = introductions()["n3"].identity // its folder is empty
	for name, want := range map[string]string{
		"n1": "it begins with the runs of seed 5eed, and node n3 with an empty folder", "n3": "it begins with an empty folder, and node n1 with the runs of seed 5eed",
	} {
		if formed, err := decideFormation(lost[name], others(lost, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want %s", name, formed, err, want)
		}
	}
	all["n1"].identity = *formed
	replacement := introductions()["n3"]
	replacement.ID = "n3-2"
	joined, err := decideReplacement(replacement, others(all, "n3"))
	if err != nil || joined.Seed != "5eed" || joined.Base != 70 || !joined.IsReplacement || joined.Cluster != formed.Cluster {
		t.Errorf("a replacement: %+v, %v", joined, err)
	}
	if _, err := decideReplacement(seeded()["n3"], others(all, "n3")); err == nil || !strings.Contains(err.Error(), "start a replacement with an empty folder") {
		t.Errorf("a replacement with a seed: %v", err)
	}
}

// TestSeedIsCompared: a folder that is not what was seeded never becomes part of a cluster.
func TestSeedIsCompared(t *testing.T) {
	t.Parallel()
	seed, _ := makeSeed(t, 3, 2)
	c := newTestCluster(t, 3, 2)
	n := c.nodes[0]
	for _, tc := range []struct {
		what, want string
		partitions int
		spoil      func() error
	}{
		{"another number of partitions", "it was made for 2 partitions, not 3", 3, func() error { return nil }},
		{"a file of tables is missing", "partition 1 of the seed: ", 2, func() error { return os.Remove(filepath.Join(n.dir, "p", "1", "db-1", "MANIFEST")) }},
		{"all rows are missing", "partition 0 of the seed: ", 2, func() error { return os.RemoveAll(filepath.Join(n.dir, "p")) }},
		{"the rows of another partition", "partition 0 of the seed: ", 2, func() error {
			of := func(p string) string { return filepath.Join(n.dir, "p", p) }
			return errors.Join(os.RemoveAll(of("0")), os.Rename(of("1"), of("0")))
		}},
		{"it was in use", "node.json is missing", 2, func() error { return os.MkdirAll(filepath.Join(n.dir, "p", "0", groupDir), 0o700) }},
	} {
		n.plant(seed)
		if err := tc.spoil(); err != nil {
			t.Fatal(err)
		}
		config := n.config()
		config.Partitions = tc.partitions
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		m, err := Open(ctx, config)
		cancel()
		if err == nil {
			n.setRunning(m)
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.what, err, tc.want)
		}
		if err := os.RemoveAll(n.dir); err != nil {
			t.Fatal(err)
		}
	}
}
