package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// filesIn returns the digests of all files below a folder, by their paths.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%x", sha256.Sum256(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// recoverNodes makes a seed of the folders of nodes that do not run, and marks them.
func recoverNodes(t *testing.T, nodes ...*testNode) (dir string, partitions []RecoveredPartition) {
	t.Helper()
	var dirs []SurvivorFolder
	before := map[string]string{}
	for _, n := range nodes {
		dirs = append(dirs, SurvivorFolder{Dir: n.dir})
		maps.Copy(before, filesIn(t, n.dir))
	}
	r, err := OpenRecovery(dirs, smallStorage)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "seed")
	if err := r.Recover(t.Context(), dir, filepath.Join(t.TempDir(), "scratch")); err != nil {
		t.Fatal(err)
	}
	after := map[string]string{}
	for _, n := range nodes {
		maps.Copy(after, filesIn(t, n.dir))
	}
	if !maps.Equal(before, after) {
		t.Error("the folders of the survivors have changed")
	}
	if err := r.Supersede("a test"); err != nil {
		t.Fatal(err)
	}
	if err := r.Seed.Write(dir); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, r.Partitions
}

// TestRecoverFromOneSurvivor: two of three folders are lost. The new cluster has all that the third one had: its
// tables and its log. The survivor does not start any more.
func TestRecoverFromOneSurvivor(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 2)
	accepted := [][]messages.RunID{old.mustSubmit(0, 8), old.mustSubmit(1, 8)}
	old.checkRuns(accepted)
	old.checkReplicas() // the survivor has all
	survivor := old.nodes[2]
	if _, err := OpenRecovery([]SurvivorFolder{{Dir: survivor.dir}}, smallStorage); err == nil || !strings.Contains(err.Error(), "another process uses the folder") {
		t.Errorf("a folder in use: %v", err)
	}
	survivor.kill() // its memtables are lost, the log has them
	old.nodes[0].close()
	old.nodes[1].close()
	seed, partitions := recoverNodes(t, survivor)
	for p, found := range partitions {
		if found.Partition != p || found.Node != "n3" || found.IsComplete || len(found.Voters) != 3 || strings.Join(found.Missing, " ") != "n1 n2" ||
			found.Index == 0 || found.Term == 0 || found.Committed > found.Index || found.Runs != 8 || found.Unfinished != 0 {
			t.Errorf("%+v", found)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if m, err := Open(ctx, survivor.config()); err == nil || !strings.Contains(err.Error(), "a test (superseded.json, ") {
		t.Errorf("the survivor starts: %v, %v", m, err)
	}
	// The mark may be all that a crash has left of a recovery, so the next one finds the same.
	again, found := recoverNodes(t, survivor)
	if !reflect.DeepEqual(found, partitions) {
		t.Errorf("a second recovery finds %+v, and the first one %+v", found, partitions)
	}
	first, err := ReadSeed(vfs.OS{}, seed)
	second, err2 := ReadSeed(vfs.OS{}, again)
	if err != nil || err2 != nil || first.id() != second.id() {
		t.Errorf("the seeds are %+v and %+v, %v, %v", first, second, err, err2)
	}

	c := newTestCluster(t, 3, 2)
	for _, n := range c.nodes {
		n.plant(seed)
	}
	c.each((*testNode).start)
	c.awaitOwnTable()
	c.checkRuns(accepted)
	c.checkReplicas()
	for p := range 2 {
		id := c.mustSubmit(p, 1)[0]
		if newest := accepted[p][len(accepted[p])-1]; id <= newest {
			t.Errorf("partition %d: a new run has the ID %d after %d", p, id, newest)
		}
	}
}

// TestRecoverTakesTheReplicaThatReachesFurthest: of two survivors one was down while runs were accepted. With two of
// three voters nothing is lost, in whichever order they are given.
func TestRecoverTakesTheReplicaThatReachesFurthest(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 1)
	accepted := [][]messages.RunID{old.mustSubmit(0, 3)}
	old.checkRuns(accepted)
	behind, ahead := old.nodes[0], old.nodes[1]
	behind.kill()
	accepted[0] = append(accepted[0], old.mustSubmit(0, 5)...)
	old.checkRuns(accepted)
	old.checkReplicas()
	ahead.kill()
	old.nodes[2].close()
	seed, partitions := recoverNodes(t, behind, ahead)
	if p := partitions[0]; p.Node != "n2" || !p.IsComplete || strings.Join(p.Missing, " ") != "n3" || p.Runs != 8 {
		t.Errorf("%+v", p)
	}
	c := newTestCluster(t, 3, 1)
	for _, n := range c.nodes {
		n.plant(seed)
	}
	c.each((*testNode).start)
	c.checkRuns(accepted)
}

// renameless is a file system whose names cannot be changed.
type renameless struct{ vfs.FS }

func (renameless) Rename(string, string) error { return errors.New("the disk is read-only") }

// TestFailedMarkIsTakenBack: when the second folder cannot be marked there is no new cluster, so the first one is not
// marked either, and the recovery can be repeated. The mark of an earlier recovery stays.
func TestFailedMarkIsTakenBack(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 1)
	old.mustSubmit(0, 1)
	old.each((*testNode).close)
	folders := []SurvivorFolder{{Dir: old.nodes[0].dir}, {Dir: old.nodes[1].dir}}
	isMarked := func(n *testNode) bool {
		_, err := os.Stat(filepath.Join(n.dir, supersededFile))
		return err == nil
	}
	fail := func() {
		t.Helper()
		r, err := OpenRecovery(folders, smallStorage)
		if err != nil {
			t.Fatal(err)
		}
		r.survivors[1].folder.fsys = renameless{vfs.OS{}}
		if err := r.Supersede("a test"); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%v", err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fail()
	if isMarked(old.nodes[0]) || isMarked(old.nodes[1]) {
		t.Error("a failed recovery has left a mark")
	}
	old.each((*testNode).start) // all of them may start
	old.mustSubmit(0, 1)
	old.each((*testNode).close)
	recoverNodes(t, old.nodes[0])
	fail()
	if !isMarked(old.nodes[0]) || isMarked(old.nodes[1]) {
		t.Error("a failed recovery has taken the mark of an earlier one back")
	}
}

// TestCopiesProveNothing: with copies of folders it is unknown what the originals have confirmed since.
func TestCopiesProveNothing(t *testing.T) {
	t.Parallel()
	old := startCluster(t, 1)
	old.mustSubmit(0, 1)
	old.each((*testNode).close)
	r, err := OpenRecovery([]SurvivorFolder{{Dir: old.nodes[0].dir}, {Dir: old.nodes[1].dir, IsCopy: true}}, smallStorage)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Recover(t.Context(), filepath.Join(t.TempDir(), "seed"), filepath.Join(t.TempDir(), "scratch")); err != nil {
		t.Fatal(err)
	}
	if p := r.Partitions[0]; p.IsComplete || strings.Join(p.Copied, " ") != "n2" || strings.Join(p.Missing, " ") != "n3" {
		t.Errorf("%+v", p)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecoveryRefusesWrongFolders: folders of two clusters, a node twice, one that never was part of a cluster, and
// one that lacks a replica.
func TestRecoveryRefusesWrongFolders(t *testing.T) {
	t.Parallel()
	one, other := startCluster(t, 1), startCluster(t, 1)
	one.mustSubmit(0, 1)
	for _, c := range []*testCluster{one, other} {
		c.each((*testNode).close)
	}
	twice := one.nodes[0].copyFolder()
	broken := one.nodes[1].copyFolder()
	if err := os.RemoveAll(filepath.Join(broken, "p", "0", "group")); err != nil {
		t.Fatal(err)
	}
	for want, dirs := range map[string][]string{
		"of cluster":           {one.nodes[0].dir, other.nodes[1].dir},
		"is a copy of another": {one.nodes[0].dir, twice},
		"node.json":            {one.nodes[0].dir, t.TempDir()},
		"partition 0 was lost": {broken},
		"no folder of a node":  nil,
	} {
		var folders []SurvivorFolder
		for _, dir := range dirs {
			folders = append(folders, SurvivorFolder{Dir: dir})
		}
		if r, err := OpenRecovery(folders, smallStorage); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, %v; want %s", dirs, r, err, want)
		}
	}
}
