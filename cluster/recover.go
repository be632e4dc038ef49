package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// When most nodes of a cluster are lost for good, the others cannot go on: they do not know what the lost ones had
// confirmed. Recover makes the seed of a new cluster of what the survivors have. For each partition it takes the
// replica whose log ends with the highest term and index, as an election would, and applies all of that
// log. So it has everything that was acknowledged if a majority of the voters has survived, and else it
// may lack the newest of it.
//
// The folders of the survivors stay as they are. Their replicas are opened as copies, one at a time, below
// the folder of the seed; the log alone is copied first, to compare. At last the folders are marked: no node
// starts with them any more. A marked folder can be recovered again: a crash may come before the seed is valid,
// and the folder may be the last one that has the runs.

// supersededFile marks the folder of a member whose runs are those of a new cluster now.
const supersededFile = "superseded.json"

// superseded is the content of that file.
type superseded struct {
	Format int       `json:"format"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// checkSuperseded refuses a folder that is marked.
func (f *folder) checkSuperseded() error {
	var s superseded
	err := readJSON(f.fsys, filepath.Join(f.path, supersededFile), &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s (%s, %s): a node on it would be part of the former cluster. Keep the folder until the new cluster runs: `caravan cluster recover` can read it again",
		s.Reason, supersededFile, s.At.Format(time.RFC3339))
}

// RecoveredPartition says what the seed has of a partition.
type RecoveredPartition struct {
	Partition int    `json:"partition"`
	Node      string `json:"node"` // whose replica it is
	Term      uint64 `json:"term"` // of the last entry
	Index     uint64 `json:"index"`
	// Committed is the last entry that is known to be committed. The entries after it are in the seed, too; a caller
	// may have been told that their outcome is unknown.
	Committed uint64 `json:"committed"`
	// Voters are those of the newest configuration, and Missing those whose folders are not here.
	Voters  []string `json:"voters"`
	Missing []string `json:"missing"`
	// Copied are the voters of which a copy of the folder is here: the original may have confirmed more since.
	Copied []string `json:"copied"`
	// IsComplete says that a majority of the voters is here, without copies. So everything that was acknowledged
	// is, if these folders were not put back to an earlier state.
	IsComplete bool `json:"isComplete"`
	Runs       int  `json:"runs"`
	Unfinished int  `json:"unfinished"`
}

// Recovery is the work of Recover on the folders of survivors, which it holds locked: OpenRecovery, Recover, then
// Seed.Write between Supersede and Close.
type Recovery struct {
	Cluster    string
	Partitions []RecoveredPartition
	// Seed is what Recover has made. Its output is not counted yet.
	Seed *Seed

	survivors []*survivor
	storage   persistence.Config
}

// SurvivorFolder is the folder of a member that does not run.
type SurvivorFolder struct {
	Dir    string
	IsCopy bool
}

// survivor is such a folder, locked.
type survivor struct {
	folder   *folder
	identity *identity
	isCopy   bool
	isMarked bool // by this recovery
}

// OpenRecovery locks the folders of members and reads who they are. All must be of one cluster.
func OpenRecovery(folders []SurvivorFolder, storage persistence.Config) (_ *Recovery, err error) {
	r := &Recovery{storage: storage}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, f := range folders {
		dir := f.Dir
		s, err := openSurvivor(f)
		if err != nil {
			return nil, fmt.Errorf("folder %s: %w", dir, err)
		}
		r.survivors = append(r.survivors, s)
		firstDir := folders[0].Dir
		first := r.survivors[0].identity
		switch id := s.identity; {
		case id.Cluster != first.Cluster:
			return nil, fmt.Errorf("folder %s is of cluster %s, and folder %s of cluster %s", dir, id.Cluster, firstDir, first.Cluster)
		case id.Partitions != first.Partitions || id.Base != first.Base:
			return nil, fmt.Errorf("folder %s has %d partitions and base %d, and folder %s has %d and %d", dir, id.Partitions, id.Base, firstDir, first.Partitions, first.Base)
		case slices.ContainsFunc(r.survivors[:len(r.survivors)-1], func(o *survivor) bool { return o.identity.ID == id.ID }):
			return nil, fmt.Errorf("folder %s is a copy of another one: both are of node %s", dir, id.ID)
		}
		r.Cluster = first.Cluster
	}
	if len(r.survivors) == 0 {
		return nil, errors.New("no folder of a node")
	}
	return r, nil
}

func openSurvivor(of SurvivorFolder) (_ *survivor, err error) {
	dir := of.Dir
	f := &folder{path: dir, fsys: vfs.OS{}}
	var id identity
	if err := readJSON(f.fsys, filepath.Join(dir, identityFile), &id); err != nil {
		return nil, err
	}
	switch {
	case id.checkFormat() != nil:
		return nil, id.checkFormat()
	case id.Level > supportedLevel:
		return nil, fmt.Errorf("the cluster has feature level %d, and this program supports levels up to %d", id.Level, supportedLevel)
	case !id.isFormed() || !id.Opened:
		return nil, errors.New("the node was never part of a cluster")
	}
	if f.lock, err = f.fsys.Lock(filepath.Join(dir, lockFile)); err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			err = errors.New("another process uses the folder")
		}
		return nil, err
	}
	if err := f.checkReplicas(&id); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return &survivor{folder: f, identity: &id, isCopy: of.IsCopy}, nil
}

// Close gives the locks back.
func (r *Recovery) Close() (err error) {
	for _, s := range r.survivors {
		err = errors.Join(err, s.folder.close())
	}
	r.survivors = nil
	return err
}

// Recover makes the rows of a seed in dir, an empty folder, with scratch, an empty folder on the same disk, for
// copies.
func (r *Recovery) Recover(ctx context.Context, dir, scratch string) error {
	id := r.survivors[0].identity
	best := make([]*survivor, id.Partitions)
	r.Partitions = make([]RecoveredPartition, id.Partitions)
	newest, term := uint64(0), uint64(0)
	for p := range id.Partitions {
		found := &r.Partitions[p]
		for _, s := range r.survivors {
			if !s.identity.hasReplica(p) {
				continue
			}
			end, err := s.readEnd(p, filepath.Join(scratch, "group"))
			if err != nil {
				return fmt.Errorf("node %s: partition %d: %w", s.identity.Name, p, err)
			}
			term, newest = max(term, end.Vote, end.Term), max(newest, end.Index)
			if best[p] != nil && (end.Term < found.Term || end.Term == found.Term && end.Index <= found.Index) {
				found.Committed = max(found.Committed, end.Synced)
				continue
			}
			best[p] = s
			*found = RecoveredPartition{Partition: p, Node: s.identity.Name, Term: end.Term, Index: end.Index, Committed: max(found.Committed, end.Synced)}
			here := 0
			for _, voter := range end.Voters {
				found.Voters = append(found.Voters, nameOfID(voter))
				switch of := r.survivorOf(voter); {
				case of == nil:
					found.Missing = append(found.Missing, nameOfID(voter))
				case of.isCopy:
					found.Copied = append(found.Copied, nameOfID(voter))
				default:
					here++
				}
			}
			found.IsComplete = 2*here > len(end.Voters)
		}
		if best[p] == nil {
			return fmt.Errorf("partition %d: no folder has a replica of it: add that of a node that has one", p)
		}
	}
	seed := NewRestoredSeed(dir, "what survived of cluster "+r.Cluster, id.Base+newest)
	defer seed.Close()
	for p, s := range best {
		if err := r.copyPartition(ctx, s, p, term, filepath.Join(scratch, "replica"), seed); err != nil {
			return fmt.Errorf("node %s: partition %d: %w", s.identity.Name, p, err)
		}
	}
	r.Seed = seed.Seed
	return nil
}

// survivorOf returns the folder of a node, nil without one.
func (r *Recovery) survivorOf(node raftlog.NodeID) *survivor {
	for _, s := range r.survivors {
		if s.identity.ID == node {
			return s
		}
	}
	return nil
}

// readEnd returns how far a replica is. It copies the log into scratch, and removes the copy.
func (s *survivor) readEnd(partition int, scratch string) (_ *raftlog.Stopped, err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	from := s.folder.replicaFolder(partition)
	var record replicaRecord
	if err := readJSON(s.folder.fsys, filepath.Join(from, replicaFile), &record); err != nil {
		return nil, err
	}
	if err := copyTree(filepath.Join(from, groupDir), scratch); err != nil {
		return nil, err
	}
	end, err := raftlog.OpenStopped(scratch, syncedMachine{index: record.Index})
	if err != nil {
		return nil, err
	}
	return end, end.Close()
}

// syncedMachine stands for the rows of a replica whose log is only read.
type syncedMachine struct {
	raftlog.Machine
	index uint64
}

func (m syncedMachine) Sync() (uint64, error) { return m.index, nil }

// copyPartition copies a replica into scratch, applies its log, and writes the rows into the seed.
func (r *Recovery) copyPartition(ctx context.Context, s *survivor, partition int, term uint64, scratch string, seed *RestoredSeed) (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := copyTree(s.folder.replicaFolder(partition), scratch); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	m := &machine{dir: scratch, fsys: s.folder.fsys, base: s.identity.Base, config: r.storage, logger: slog.New(slog.DiscardHandler)}
	m.config.Registerer = nil
	m.config.Numbering = messages.Numbering{Partitions: uint64(s.identity.Partitions), Partition: uint64(partition)}
	if err := openMachine(m, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	log, err := raftlog.OpenStopped(filepath.Join(scratch, groupDir), m)
	if err != nil {
		return err
	}
	if err := errors.Join(log.ApplyAll(), log.Close()); err != nil {
		return err
	}
	view, err := m.View()
	if err != nil {
		return err
	}
	defer view.Close()
	if err := seed.Begin(term); err != nil {
		return err
	}
	if err := view.Rows(ctx, func(key, value []byte) error { seed.Row(key, value); return nil }); err != nil {
		return err
	}
	digest, _, err := view.Digest() // it reads the tables, too: a damaged one is an error
	if err != nil {
		return err
	}
	found := &r.Partitions[partition]
	if found.Unfinished, err = seed.End(digest); err == nil {
		found.Runs = seed.Partitions[partition].Runs
	}
	return err
}

// Supersede marks the folders of the survivors: no node starts with them any more. The seed is valid after it only,
// so that the former cluster and the new one do not both go on with the same runs. After an error the marks are
// taken back.
func (r *Recovery) Supersede(reason string) error {
	for _, s := range r.survivors {
		switch _, err := s.folder.fsys.Stat(filepath.Join(s.folder.path, supersededFile)); {
		case err == nil: // by an earlier recovery, whose new cluster may exist: this mark stays in any case
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return errors.Join(fmt.Errorf("folder %s: %w", s.folder.path, err), r.Reinstate())
		}
		s.isMarked = true
		if err := writeJSON(s.folder.fsys, s.folder.path, supersededFile, superseded{folderFormat, reason, time.Now().UTC()}); err != nil {
			return errors.Join(fmt.Errorf("folder %s: %w", s.folder.path, err), r.Reinstate())
		}
	}
	return nil
}

// Reinstate takes the marks of this recovery back: its seed was not made.
func (r *Recovery) Reinstate() (err error) {
	for _, s := range r.survivors {
		if !s.isMarked {
			continue
		}
		removed := s.folder.fsys.Remove(filepath.Join(s.folder.path, supersededFile))
		if errors.Is(removed, fs.ErrNotExist) {
			removed = nil
		}
		err = errors.Join(err, removed, s.folder.fsys.SyncDir(s.folder.path))
	}
	return err
}

// copyTree copies a folder with files and folders. Badger and the log write into files that they have, so links
// would change the original.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, inside)
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o700)
		case !entry.Type().IsRegular():
			return fmt.Errorf("%s is not a regular file", path)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
