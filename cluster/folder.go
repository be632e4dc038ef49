package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// The folder of a member:
//
//	node.json            who this node is, and the cluster that it is part of (identity)
//	nodes.json           the newest table of the cluster's nodes that this node has seen (table_keeper.go)
//	node.lock            locked while a process uses the folder
//	superseded.json      its runs were taken into a new cluster (recover.go)
//	seed.json            the runs of a single server with which the cluster began, if it did (seed.go)
//	p/<p>/replica.json   what the rows of partition p are (replicaRecord)
//	p/<p>/db-<n>/        the rows, in their n-th generation (machine.go)
//	p/<p>/group/         vote, log and snapshot record of the replicated log (package raftlog)
const (
	identityFile = "node.json"
	lockFile     = "node.lock"
	replicaFile  = "replica.json"
	partitionDir = "p"
	groupDir     = "group"

	// folderFormat is that of node.json, replica.json, seed.json and of introductions: nodes of two
	// formats refuse each other. It does not cover the files of the storage engine in db-<n>. For those,
	// datafolder.Format refuses the folder of a node, and the digests of its rows a seed, which has no
	// identity.
	folderFormat = 1
	// levelFormat is that of node.json, and of introductions, of a cluster with a feature level above 0: programs
	// that have no levels refuse it.
	levelFormat = 2
)

// NodeAddress is a node as an operator lists it.
type NodeAddress struct {
	Name    string `json:"name"`
	Address string `json:"address"` // host and port
}

// memberName is a node of a cluster.
type memberName struct {
	Name string         `json:"name"`
	ID   raftlog.NodeID `json:"id"`
}

// identity is the content of node.json. The ID of a node is drawn when its folder is made, so a node that
// has lost its folder comes back under another ID: its former ID may have voted, and confirmed entries
// that are lost now.
type identity struct {
	Format int            `json:"format"`
	Name   string         `json:"name"`
	ID     raftlog.NodeID `json:"id"`
	// Cluster is "" until the cluster is formed, and Members empty.
	Cluster    string       `json:"cluster,omitempty"`
	Members    []memberName `json:"members,omitempty"`
	Partitions int          `json:"partitions,omitempty"`
	// Base is added to the index of a log entry to get its moment. It is the same on all members.
	Base uint64 `json:"base,omitempty"`
	// Seed names the rows of a single server that the cluster begins with, "" for none, and SeedTerm is their
	// term (seed.go). A new folder has Base, Seed and Partitions of its seed.
	Seed     string `json:"seed,omitempty"`
	SeedTerm uint64 `json:"seedTerm,omitempty"`
	// Level is a feature level that the cluster has, or is about to have. That of formation is the one that the cluster
	// begins with. See setLevel.
	Level int `json:"level,omitempty"`
	// Replicas lists the partitions of which the node has a replica, in ascending order. Missing (nil): of all. It is
	// written before a replica is made, so a folder of a partition that it lacks is not in use.
	Replicas []int `json:"replicas,omitzero"`
	// Opened says that all of these replicas were opened once. From then on a missing one was lost. No replica
	// was opened before all nodes had formed the cluster.
	Opened bool `json:"opened,omitempty"`
	// IsReplacement says that Members are not those that formed the cluster: this node, or the one that it
	// has the list from, is in place of a former one. Groups then begin without a list of voters: two first
	// entries that differ would be two clusters of one ID. AdmittedTo has the partitions that the node was a
	// voter of since, and IsAdmitted says that these are all.
	IsReplacement bool  `json:"isReplacement,omitempty"`
	AdmittedTo    []int `json:"admittedTo,omitempty"`
	IsAdmitted    bool  `json:"isAdmitted,omitempty"`
}

// mustHaveEntries reports whether the log of a partition had entries when the folder was last in use. A
// replacement may have opened its replica and not been admitted since.
func (i *identity) mustHaveEntries(partition int) bool {
	return i.Opened && (!i.IsReplacement || i.IsAdmitted || slices.Contains(i.AdmittedTo, partition))
}

// setLevel sets the level, and with it the format.
func (i *identity) setLevel(level int) {
	i.Level = level
	if level > 0 {
		i.Format = levelFormat
	}
}

// checkFormat refuses a file of another version.
func (i *identity) checkFormat() error {
	if i.Format != folderFormat && i.Format != levelFormat {
		return fmt.Errorf("%s has format %d, this program reads formats %d and %d", identityFile, i.Format, folderFormat, levelFormat)
	}
	return nil
}

func (i *identity) isFormed() bool { return i.Cluster != "" }

// clusterID returns the ID of the cluster; the zero ID before it is formed.
func (i *identity) clusterID() (id ID, err error) {
	if !i.isFormed() {
		return id, nil
	}
	b, err := hex.DecodeString(i.Cluster)
	if err == nil && len(b) != len(id) {
		err = fmt.Errorf("it has %d bytes", len(b))
	}
	if err != nil {
		return id, fmt.Errorf("%s: invalid cluster ID %q: %w", identityFile, i.Cluster, err)
	}
	return ID(b), nil
}

// ids returns the IDs of all members.
func (i *identity) ids() (ids []raftlog.NodeID) {
	for _, m := range i.Members {
		ids = append(ids, m.ID)
	}
	return ids
}

// idDigits is the number of random hexadecimal digits of a node ID, after the name and a hyphen.
const idDigits = 16

// nameOfID returns the name of a node, or "". IDs tell names, so that every member knows where a node is
// that came in place of another one.
func nameOfID(id raftlog.NodeID) string { return string(id[:max(len(id)-idDigits-1, 0)]) }

// folder is the folder of a member, locked for this process.
type folder struct {
	path string
	fsys vfs.FS
	lock io.Closer

	mu sync.Mutex // held over the writes of node.json
	// written is the content of node.json since the open, or the last write of it.
	written identity
}

// openFolder locks a folder, and reads who the node is. A new folder gets an ID, which is durable before
// any other node can learn of it.
func openFolder(fsys vfs.FS, path, name string) (*folder, *identity, error) {
	f := &folder{path: path, fsys: fsys}
	if err := makeFolder(fsys, path); err != nil {
		return nil, nil, err
	}
	var err error
	f.lock, err = fsys.Lock(filepath.Join(path, lockFile))
	if errors.Is(err, vfs.ErrLocked) {
		err = errors.New("another process uses the folder")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("folder %s: %w", path, err)
	}
	id, err := f.readIdentity(name)
	if err == nil {
		err = f.checkSuperseded()
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("folder %s: %w", path, err), f.lock.Close())
	}
	return f, id, nil
}

// makeFolder makes a folder with its parents, durably: a power failure must not take a folder away that has an
// identity.
func makeFolder(fsys vfs.FS, path string) error {
	path = filepath.Clean(path)
	// These get a new name each, from the lowest one. The first is always synced: an earlier start may have
	// been killed before it did.
	parents := []string{filepath.Dir(path)}
	for parent := parents[0]; ; parent = filepath.Dir(parent) {
		if _, err := fsys.Stat(parent); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		parents = append(parents, filepath.Dir(parent))
	}
	if err := fsys.MkdirAll(path, 0o700); err != nil {
		return err
	}
	for _, parent := range slices.Backward(parents) {
		if err := fsys.SyncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) readIdentity(name string) (*identity, error) {
	var id identity
	err := readJSON(f.fsys, filepath.Join(f.path, identityFile), &id)
	if errors.Is(err, fs.ErrNotExist) {
		return f.newIdentity(name)
	}
	switch {
	case err != nil:
		return nil, err
	case id.checkFormat() != nil:
		return nil, id.checkFormat()
	case id.Name != name:
		return nil, fmt.Errorf("it is the folder of node %s, not of node %s", id.Name, name)
	}
	if _, err := id.clusterID(); err != nil {
		return nil, err
	}
	f.written = id
	return &id, nil
}

// FixedPartitions returns the number of partitions of the cluster that a folder of a member is part of, or
// that its seed was made for; 0 = the number is open. It needs no lock, and reports no damage but that of the files
// which it reads.
func FixedPartitions(fsys vfs.FS, path string) (int, error) {
	var id identity
	err := readJSON(fsys, filepath.Join(path, identityFile), &id)
	if !errors.Is(err, fs.ErrNotExist) {
		return id.Partitions, err
	}
	seed, err := ReadSeed(fsys, path)
	if err != nil || seed == nil {
		return 0, err
	}
	return len(seed.Partitions), nil
}

func (f *folder) newIdentity(name string) (*identity, error) {
	seed, err := ReadSeed(f.fsys, f.path)
	if err == nil && seed != nil {
		err = seed.checkUnused(f)
	}
	if err != nil {
		return nil, err
	}
	switch list, err := f.fsys.ReadDir(filepath.Join(f.path, partitionDir)); {
	case seed != nil:
	case err == nil && len(list) > 0:
		return nil, fmt.Errorf("it has replicas, and %s is missing: put the file back, or start with an empty folder as a new node", identityFile)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	var random [idDigits / 2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	id := &identity{Format: folderFormat, Name: name, ID: raftlog.NodeID(name + "-" + hex.EncodeToString(random[:]))}
	if seed != nil {
		id.Base, id.Seed, id.SeedTerm, id.Partitions = seed.Base, seed.id(), seed.Term, len(seed.Partitions)
	}
	return id, f.writeIdentity(id)
}

// writeIdentity makes an identity durable, with the highest level that was ever written.
func (f *folder) writeIdentity(id *identity) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := *id
	next.setLevel(max(id.Level, f.written.Level))
	if err := writeJSON(f.fsys, f.path, identityFile, &next); err != nil {
		return err
	}
	f.written = next
	return nil
}

// raiseLevel makes a feature level durable in node.json, if the former one is lower.
func (f *folder) raiseLevel(level int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if level <= f.written.Level {
		return nil
	}
	next := f.written
	next.setLevel(level)
	if err := writeJSON(f.fsys, f.path, identityFile, &next); err != nil {
		return err
	}
	f.written = next
	return nil
}

// replicaFolder returns the folder of a partition.
func (f *folder) replicaFolder(partition int) string {
	return filepath.Join(f.path, partitionDir, strconv.Itoa(partition))
}

// checkReplicas refuses a folder that has lost a replica. An empty replica of the same node could vote a
// second time in a term, and would not have the entries that it has confirmed.
func (f *folder) checkReplicas(id *identity) error {
	for p := range id.Partitions {
		if !id.hasReplica(p) {
			continue
		}
		for _, name := range []string{replicaFile, groupDir} {
			path := filepath.Join(f.replicaFolder(p), name)
			if _, err := f.fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is missing: the replica of partition %d was lost. Put it back, or start with an empty folder as a new node", path, p)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// close gives the lock back.
func (f *folder) close() error { return f.lock.Close() }

// writeJSON replaces a file. After a crash the file holds the old value or the new one; the new one is
// durable when the function returns nil.
func writeJSON(fsys vfs.FS, dir, name string, value any) error {
	data, err := json.MarshalIndent(value, "", "\t")
	if err != nil {
		return err
	}
	return vfs.ReplaceFile(fsys, filepath.Join(dir, name), append(data, '\n'))
}

// maxJSONBytes bounds the files of this package, in bytes: a damaged one must not exhaust the memory.
const maxJSONBytes = 1 << 20

// readJSON reads what writeJSON has written. A missing file is fs.ErrNotExist.
func readJSON(fsys vfs.FS, path string, value any) error {
	file, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxJSONBytes {
		return fmt.Errorf("%s: damaged: it has %d bytes", path, info.Size())
	}
	data := make([]byte, info.Size())
	if _, err := file.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("%s: damaged: %w", path, err)
	}
	return nil
}
