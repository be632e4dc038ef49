package cluster

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence"
)

// A new cluster may also begin with the rows of a cluster that is lost: of a backup. They are a seed as those
// of a single server are, with the same partitions. All partitions get one moment, because a cluster
// has one base: rows do not depend on the number of the commit that they are of.

// RestoredSeed makes a seed of the rows of a cluster's partitions: NewRestoredSeed, for each partition by its
// number Begin, Row, and End; then Seed.Write. Close follows in any case. One goroutine uses it.
type RestoredSeed struct {
	*Seed
	// DropsWorkers says that the rows of workers are left out: those of another cluster do not take part in this
	// one, and its first leaders would wait for their leases. It is set before the first partition.
	DropsWorkers bool
	dir          string
	install      *installation // of the partition that is being written; nil without one
}

// installation is the rows of one partition on their way to its folder.
type installation struct {
	number int
	m      *machine
	rows   chan [2][]byte // key and value
	done   chan error     // holds one
	// counted is what the rows are; the sender owns it.
	counted persistence.RowCounts
	digest  [32]byte // set before done
	written uint64
	// given and kept are the digests of all rows, and of those that are kept. They are nil if all are kept.
	given, kept *persistence.RowDigest
}

// errGivenUp ends an installation that lacks rows.
var errGivenUp = errors.New("the rows of the partition are incomplete")

// NewRestoredSeed begins a seed in dir, an empty folder. from names the origin of the rows, and moment is at
// least that of each of them.
func NewRestoredSeed(dir, from string, moment uint64) *RestoredSeed {
	base := max(moment, raftlog.SeedIndex) - raftlog.SeedIndex
	return &RestoredSeed{Seed: &Seed{Format: folderFormat, From: from, Base: base}, dir: dir}
}

// Begin begins the next partition. No row is of a later term.
func (s *RestoredSeed) Begin(term uint64) error {
	if s.install != nil {
		panic(fmt.Sprintf("cluster: partition %d begins within partition %d", len(s.Partitions), s.install.number))
	}
	files, number := vfs.OS{}, len(s.Partitions)
	i := &installation{number: number, rows: make(chan [2][]byte, 1024), done: make(chan error, 1)}
	i.m = &machine{dir: (&folder{path: s.dir}).replicaFolder(number), fsys: files,
		record: replicaRecord{Format: folderFormat, Generation: 1, Index: raftlog.SeedIndex, Moment: s.Base + raftlog.SeedIndex}}
	if err := files.MkdirAll(i.m.dir, 0o700); err != nil {
		return err
	}
	s.Term = max(s.Term, term)
	if s.DropsWorkers {
		i.given, i.kept = persistence.NewRowDigest(), persistence.NewRowDigest()
	}
	s.install = i
	go func() {
		var err error
		i.digest, i.written, err = persistence.InstallRows(i.m.generationFolder(1), i.m.record.Moment, func(yield func(key, value []byte) error) error {
			for row := range i.rows {
				if row[0] == nil {
					return errGivenUp
				}
				if err := yield(row[0], row[1]); err != nil {
					return err
				}
			}
			return nil
		})
		i.done <- err
		for range i.rows { // after an error the sender must not wait
		}
	}()
	return nil
}

// Row adds the next row of the partition, by ascending keys. It copies key and value. End returns its error.
func (s *RestoredSeed) Row(key, value []byte) {
	if i := s.install; i.given != nil {
		i.given.Add(key, value)
		if persistence.IsWorkerRow(key) {
			return
		}
		i.kept.Add(key, value)
	}
	s.install.counted.Add(key)
	s.install.rows <- [2][]byte{append([]byte{}, key...), append([]byte{}, value...)}
}

// End ends the partition: its rows are durable then. digest is that of the rows that Row was to get, also of those
// that are left out. It returns how many runs of the partition are unfinished.
func (s *RestoredSeed) End(digest [32]byte) (unfinished int, err error) {
	i := s.install
	s.install = nil
	close(i.rows)
	err = <-i.done
	if err == nil && i.given != nil {
		if got := i.given.Sum(); got != digest {
			err = fmt.Errorf("%d rows with the digest %x came in place of %x", i.given.Rows(), got, digest)
		}
		digest = i.kept.Sum()
	}
	if err == nil && i.digest != digest {
		err = fmt.Errorf("%d rows with the digest %x were written in place of %x", i.written, i.digest, digest)
	}
	if err == nil {
		err = writeJSON(i.m.fsys, i.m.dir, replicaFile, i.m.record)
	}
	if err == nil {
		err = i.m.fsys.SyncDir(filepath.Dir(i.m.dir))
	}
	if err == nil {
		err = i.m.fsys.SyncDir(s.dir)
	}
	if err != nil {
		return 0, fmt.Errorf("partition %d: %w", i.number, err)
	}
	s.Partitions = append(s.Partitions, SeedPartition{Digest: hex.EncodeToString(digest[:]), Rows: i.written, Runs: i.counted.Runs, Keys: i.counted.Keys})
	return i.counted.Unfinished, nil
}

// Close ends a partition that was begun and not ended. The caller then removes the folder.
func (s *RestoredSeed) Close() {
	if i := s.install; i != nil {
		s.install = nil
		i.rows <- [2][]byte{}
		close(i.rows)
		<-i.done
	}
}
