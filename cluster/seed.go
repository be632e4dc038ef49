package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A cluster may begin with the runs of a single server, or of a backup of another cluster (restore.go). A seed is one folder of them, which the operator
// copies to every node before the first start: so all nodes begin with the same rows, or the cluster does not
// begin.
//
//   - The folder has no identity. Each node draws its own when it starts, so two copies are two nodes, as two
//     empty folders are.
//   - An introduction names the seed, and nodes with different seeds refuse each other (formation.go). A node
//     whose copy was lost before the first start has no seed, and is refused: an empty cluster cannot begin
//     in place of the seeded one as long as one node has the seed.
//   - A node compares the digests of its rows with those in the seed before it introduces itself. A copy that
//     is incomplete or damaged is never part of a cluster.
//   - The rows are those of entry 1 of each replicated log, and no log has that entry (raftlog.Seed). So a node
//     that replaces another one later gets them in a copy.
//
// The folder, as a member finds it in Config.Dir:
//
//	seed.json            what was seeded (Seed); written last
//	p/<p>/replica.json   the rows are those of entry 1
//	p/<p>/db-1/          the rows of partition p

// SeedFile is the name of the file in a member's folder that makes the folder a seed.
const SeedFile = "seed.json"

// Seed is what a cluster begins with.
type Seed struct {
	Format int    `json:"format"`
	From   string `json:"from"` // what the rows are of: the ID of a data folder, or a backup
	// Base and Term are the moment and the epoch that the rows end with. The logs go on from there.
	Base       uint64          `json:"base"`
	Term       uint64          `json:"term"`
	Partitions []SeedPartition `json:"partitions"` // by number
	// OutputFiles and OutputBytes count the output that belongs to the rows. It lies outside of the member's
	// folder, and who makes the seed and starts the node takes care of it.
	OutputFiles int   `json:"outputFiles"`
	OutputBytes int64 `json:"outputBytes"`
}

// SeedPartition is the rows of one partition.
type SeedPartition struct {
	Digest string `json:"digest"`
	Rows   uint64 `json:"rows"`
	Runs   int    `json:"runs"`
	Keys   int    `json:"keys"` // idempotency keys
}

// id names the seed by its content.
func (s *Seed) id() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "from %s, base %d, term %d\n", s.From, s.Base, s.Term)
	for _, p := range s.Partitions {
		fmt.Fprintf(sum, "%d rows %s\n", p.Rows, p.Digest)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// NewSeed begins the seed of a view: its rows and the moment they are of. from is the ID of their data folder.
func NewSeed(view *persistence.ReadView, from string) *Seed {
	return &Seed{Format: folderFormat, From: from, Base: view.CommitNumber() - raftlog.SeedIndex}
}

// WritePartitions writes the rows of all partitions into dir, an empty folder. The view is that of NewSeed, of
// a store at rest, and next is the store's NextRun. The rows are durable when it returns,
// and the folder is a seed only after Write.
func (s *Seed) WritePartitions(ctx context.Context, dir string, view *persistence.ReadView, partitions int, next messages.RunID) error {
	files := vfs.OS{}
	for p := range partitions {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		m := &machine{dir: (&folder{path: dir}).replicaFolder(p), fsys: files,
			record: replicaRecord{Format: folderFormat, Generation: 1, Index: raftlog.SeedIndex, Moment: s.Base + raftlog.SeedIndex}}
		if err := files.MkdirAll(m.dir, 0o700); err != nil {
			return err
		}
		numbering := messages.Numbering{Partitions: uint64(partitions), Partition: uint64(p)}
		written, err := installPartition(ctx, m.generationFolder(1), view, numbering, next)
		if err == nil {
			err = writeJSON(files, m.dir, replicaFile, m.record)
		}
		if err != nil {
			return fmt.Errorf("partition %d: %w", p, err)
		}
		s.Term = max(s.Term, written.Epoch)
		s.Partitions = append(s.Partitions, SeedPartition{Digest: hex.EncodeToString(written.Digest[:]), Rows: written.Rows, Runs: written.Runs, Keys: written.Keys})
	}
	for _, parent := range []string{filepath.Join(dir, partitionDir), dir} {
		if err := files.SyncDir(parent); err != nil {
			return err
		}
	}
	return nil
}

// installPartition makes the rows of a partition, in a folder of their own.
func installPartition(ctx context.Context, dir string, view *persistence.ReadView, n messages.Numbering, next messages.RunID) (persistence.PartitionCopy, error) {
	type result struct {
		written persistence.PartitionCopy
		err     error
	}
	reader, writer := io.Pipe()
	done := make(chan result, 1)
	go func() {
		written, err := view.WritePartition(ctx, writer, n, next)
		writer.CloseWithError(err)
		done <- result{written, err}
	}()
	_, err := persistence.InstallCopy(dir, reader)
	reader.CloseWithError(err) // after an error the other end must not wait
	r := <-done
	if r.err != nil && !errors.Is(r.err, io.ErrClosedPipe) {
		err = r.err // the cause of the other one
	}
	return r.written, err
}

// Write makes the folder a seed, durably. All else is durable before.
func (s *Seed) Write(dir string) error { return writeJSON(vfs.OS{}, dir, SeedFile, s) }

// ReadSeed returns the seed of a member's folder that has not been part of a cluster yet; nil for a folder
// without one.
func ReadSeed(fsys vfs.FS, dir string) (*Seed, error) {
	var s Seed
	err := readJSON(fsys, filepath.Join(dir, SeedFile), &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case s.Format != folderFormat:
		return nil, fmt.Errorf("%s has format %d, this program reads format %d", SeedFile, s.Format, folderFormat)
	case len(s.Partitions) == 0:
		return nil, fmt.Errorf("%s: damaged: it has no partitions", SeedFile)
	}
	return &s, nil
}

// UnusedSeed returns the seed of a folder that no node has used; nil for any other folder.
func UnusedSeed(dir string) (*Seed, error) {
	fsys := vfs.OS{}
	if _, err := fsys.Stat(filepath.Join(dir, identityFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return ReadSeed(fsys, dir)
}

// checkUnused refuses a seed whose replicas were part of a cluster: their votes must not be forgotten.
func (s *Seed) checkUnused(f *folder) error {
	for p := range s.Partitions {
		path := filepath.Join(f.replicaFolder(p), groupDir)
		if _, err := f.fsys.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s exists, and %s is missing: put the file back, or start with an empty folder as a new node", path, identityFile), err)
		}
	}
	return nil
}

// checkSeed compares the rows of a new folder with its seed.
func (m *Member) checkSeed() error {
	c := &m.config
	seed, err := ReadSeed(c.FS, c.Dir)
	switch {
	case err != nil:
		return err
	case seed == nil || seed.id() != m.identity.Seed:
		return fmt.Errorf("%s is not that of %s", SeedFile, describeSeed(m.identity.Seed))
	case len(seed.Partitions) != c.Partitions:
		return fmt.Errorf("it was made for %d partitions, not %d", len(seed.Partitions), c.Partitions)
	}
	c.Logger.Info("comparing the runs that the cluster begins with", "seed", m.identity.Seed, "runs", seed.Runs())
	return seed.verify(m.folder, c.Storage)
}

// verify compares the rows of a folder with the seed. It reads all of them.
func (s *Seed) verify(f *folder, storage persistence.Config) error {
	for p, want := range s.Partitions {
		m := &machine{dir: f.replicaFolder(p), fsys: f.fsys, config: storage}
		m.config.Registerer = nil
		err := readJSON(f.fsys, filepath.Join(m.dir, replicaFile), &m.record)
		if err == nil {
			err = m.compareDigest(want)
		}
		if err != nil {
			return fmt.Errorf("partition %d of the seed: %w: copy the folder that was made for all nodes once more", p, err)
		}
	}
	return nil
}

// compareDigest opens the rows of a seed and compares them.
func (m *machine) compareDigest(want SeedPartition) (err error) {
	db, _, err := m.openDB(m.record)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	view, err := db.View()
	if err != nil {
		return err
	}
	defer view.Close()
	digest, rows, err := view.Digest()
	if got := hex.EncodeToString(digest[:]); err == nil && (got != want.Digest || rows != want.Rows) {
		err = fmt.Errorf("it has %d rows with the digest %s, and %d rows with %s were written", rows, got, want.Rows, want.Digest)
	}
	return err
}

// Runs returns the number of runs.
func (s *Seed) Runs() int { return s.sum(func(p SeedPartition) int { return p.Runs }) }

// Keys returns the number of idempotency keys.
func (s *Seed) Keys() int { return s.sum(func(p SeedPartition) int { return p.Keys }) }

func (s *Seed) sum(of func(SeedPartition) int) (n int) {
	for _, p := range s.Partitions {
		n += of(p)
	}
	return n
}
