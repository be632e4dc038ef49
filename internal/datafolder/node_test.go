package datafolder_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/datafolder"
)

// usedByNode makes the folder of a node as a server leaves it, and returns its path.
func usedByNode(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	f := opened(t, path, datafolder.Options{Node: true})
	write(t, filepath.Join(f.Cluster(), "node.json"), "{}")
	if err := errors.Join(f.MarkUsed(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKindsOfFoldersAreKeptApart proves that a node and a single server refuse the folder of each other,
// and leave it as it was.
func TestKindsOfFoldersAreKeptApart(t *testing.T) {
	single, node := used(t), usedByNode(t)
	for _, tc := range []struct {
		path string
		o    datafolder.Options
		want string
	}{
		{single, datafolder.Options{Node: true}, "it is the folder of a single server, whose runs cannot join a cluster that exists: choose an empty folder"},
		{node, datafolder.Options{}, "it is the folder of a node of a cluster: start the node with --node and --cluster"},
	} {
		if _, err := datafolder.Open(tc.path, tc.o); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
		tc.o.Node = !tc.o.Node
		opened(t, tc.path, tc.o).Close()
	}
	if _, err := datafolder.Inspect(node); err == nil || !strings.Contains(err.Error(), "it is the folder of a node of a cluster, which has cluster/ in place of db/") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(node, "db")); err == nil {
		t.Error("the folder of the node has db/")
	}
}

// TestNodeForgetsNothing proves that no start of a node removes its replicas, or goes on without them.
func TestNodeForgetsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	f := opened(t, path, datafolder.Options{Node: true})
	vote := filepath.Join(f.Cluster(), "vote")
	write(t, vote, "1") // before anything was acknowledged
	f.Close()
	opened(t, path, datafolder.Options{Node: true}).Close()
	if _, err := os.Lstat(vote); err != nil {
		t.Errorf("the vote is gone: %v", err)
	}

	path = usedByNode(t)
	if _, err := datafolder.Open(copyOf(t, path), datafolder.Options{Node: true}); err == nil || !strings.Contains(err.Error(), "it is a copy of a node's folder") {
		t.Errorf("a copy: got %v", err)
	}
	if err := os.RemoveAll(filepath.Join(path, "cluster")); err != nil {
		t.Fatal(err)
	}
	if _, err := datafolder.Open(path, datafolder.Options{Node: true}); err == nil || !strings.Contains(err.Error(), "cluster/ is missing: it held the replicas of this node") {
		t.Errorf("without its replicas: got %v", err)
	}
	path = usedByNode(t)
	for _, name := range []string{"identity", "identity.copy"} {
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := datafolder.Open(path, datafolder.Options{Node: true}); err == nil || !strings.Contains(err.Error(), "cluster/ has data but identity is missing") {
		t.Errorf("without its identity: got %v", err)
	}
}
