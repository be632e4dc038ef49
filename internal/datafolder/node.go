package datafolder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// The data folder of a node of a cluster has cluster/ in place of db/: package cluster keeps the node's
// replicas there, and decides what of them may be missing. The folder differs from that of a single
// server in this:
//
//   - Nothing in cluster/ is ever removed here: a node that has voted must not forget it, even before
//     anything was acknowledged.
//   - A copy is refused. Two nodes with one history could both vote. A seed lacks
//     an identity: copies of it are new folders (CreateSeed).
//
// Each kind of server refuses the folder of the other one.

// Cluster returns the path of the replicas of a node; only a folder that was opened with Options.Node
// has it.
func (f *Folder) Cluster() string { return f.pathOf(clusterName) }

// parts returns the folders in DATA.
func (f *Folder) parts() []string {
	if f.isNode {
		return []string{clusterName, outputName, workerName}
	}
	return []string{dbName, outputName, workerName}
}

// checkKind refuses the folder of a node if this is not one, and the reverse.
func (f *Folder) checkKind() error {
	name, err := clusterName, errors.New("it is the folder of a node of a cluster: start the node with --node and --cluster")
	if f.isNode {
		name, err = dbName, errors.New("it is the folder of a single server, whose runs cannot join a cluster that exists: choose an empty folder or a new path for the node, or make a new cluster of it (`caravan cluster init`)")
	}
	if _, serr := os.Lstat(f.pathOf(name)); errors.Is(serr, fs.ErrNotExist) {
		return nil
	} else if serr != nil {
		return serr
	}
	return err
}

// errCopyOfNode means that a node was started with a copy of its folder.
var errCopyOfNode = errors.New("it is a copy of a node's folder, and the original may have voted and confirmed entries since: " +
	"start the node with the original folder")

// errNodeFolder is the error for commands that read the store of a single server.
func errNodeFolder() error {
	return fmt.Errorf("it is the folder of a node of a cluster, which has %s/ in place of %s/: this command reads folders of single servers, and `caravan cluster verify` compares the replicas of a running cluster", clusterName, dbName)
}
