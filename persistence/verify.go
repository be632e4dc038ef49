package persistence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/tables"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// keeper proves Badger's tables whole (package tables): all of them before Badger opens
// the folder, each new one within a minute, and all again once a day. It writes down what
// it found, so that the next open sees what has gone meanwhile.
type keeper struct {
	dir string

	writing sync.Mutex        // one inventory is made and written at a time
	known   *tables.Inventory // under writing: what is written down; nil before the first one

	stop  context.CancelFunc
	ended chan struct{}

	mu     sync.Mutex
	damage error // the first that was found while running

	verified prometheus.Gauge
	damages  prometheus.Counter
}

const (
	keepEvery   = time.Minute    // between two looks for new tables
	verifyEvery = 24 * time.Hour // between two passes over all tables
	verifyRate  = 50 << 20       // bytes a second of such a pass
)

// errNextStep ends each refusal of damaged files.
const errNextStep = "`caravan check` lists all damage (docs/operations.md, When the data folder is damaged)"

// verifyTables proves a folder whole before Badger opens it, and returns what was known
// of it before.
func (s *Badger) verifyTables(c Config) error {
	s.keeper.dir = c.Dir
	if c.Unverified {
		s.log.Warn("tables are not verified before they are used", "dir", c.Dir)
		s.keeper.known, _ = tables.ReadInventory(c.Dir) // nil when it is of no use
		return nil
	}
	free, err := lockFolder(c.Dir)
	if err != nil {
		return err
	}
	if free == nil {
		return inUse(c.Dir)
	}
	defer free()
	begin := time.Now()
	r, err := tables.Verify(context.Background(), c.Dir, tables.Options{})
	if err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("damaged: %w; %s", err, errNextStep)
	}
	if r.Stale != nil && r.Inventory != nil && !errors.Is(r.Stale, fs.ErrNotExist) {
		s.log.Warn("the inventory of tables is made anew", "reason", r.Stale)
	}
	s.log.Debug("tables verified", "tables", r.Tables, "bytes", r.Bytes, "took", time.Since(begin))
	s.keeper.known = r.Inventory
	if r.Inventory == nil {
		return nil
	}
	return r.Inventory.Write(vfs.OS{}, c.Dir)
}

// lockFolder locks a folder as Badger does, for a moment; free is nil when another
// process has it.
func lockFolder(dir string) (free func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f.Close, nil
}

// checkNext compares the highest run id by the rows with that of the inventory. The rows
// may be ahead; when they are behind, rows of acknowledged runs are missing.
func (s *Badger) checkNext() error {
	k := &s.keeper
	if k.known == nil || s.enc.next.Load() >= k.known.NextRun {
		return nil
	}
	err := fmt.Errorf("damaged: %s/INVENTORY: run ids below %d were in use, the rows end at %d: runs are missing; %s",
		k.dir, k.known.NextRun, s.enc.next.Load(), errNextStep)
	return err
}

// keep runs until the store closes.
func (s *Badger) keep() {
	k := &s.keeper
	ctx, cancel := context.WithCancel(context.Background())
	k.stop, k.ended = cancel, make(chan struct{})
	go func() {
		defer close(k.ended)
		tick := time.NewTicker(keepEvery)
		defer tick.Stop()
		all := time.Now().Add(verifyEvery)
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				whole := now.After(all)
				if whole {
					all = now.Add(verifyEvery)
				}
				if err := s.verifyLive(ctx, whole); err != nil && ctx.Err() == nil {
					s.log.Warn("tables were not verified", "err", err)
				}
			}
		}
	}()
}

// close ends what runs.
func (k *keeper) close() {
	if k.stop != nil {
		k.stop()
		<-k.ended
	}
}

// VerifyNow reads all tables while the store is in use, and returns what is damaged.
func (s *Badger) VerifyNow(ctx context.Context) error {
	if err := s.verifyLive(ctx, true); err != nil {
		return err
	}
	return s.Damaged()
}

// verifyLive reads the new tables, or all, beside Badger, and writes the inventory.
func (s *Badger) verifyLive(ctx context.Context, all bool) error {
	next := s.enc.next.Load()
	if err := s.barrier(); err != nil { // all runs below next are durable
		return err
	}
	k := &s.keeper
	k.writing.Lock()
	o := tables.Options{Live: true, Rate: verifyRate}
	if k.known != nil && !all {
		o.Known = k.known.Tables
	}
	k.writing.Unlock()
	begin := time.Now()
	r, err := tables.Verify(ctx, k.dir, o)
	if err != nil {
		return err
	}
	if err := r.Err(); err != nil {
		s.damaged(err)
		return nil // what is damaged is not written down as what should be
	}
	if all {
		s.log.Info("all tables verified", "tables", r.Tables, "bytes", r.Bytes, "took", time.Since(begin).Round(time.Millisecond))
		if k.verified != nil {
			k.verified.SetToCurrentTime()
		}
	}
	if r.Inventory == nil {
		return nil
	}
	k.writing.Lock()
	defer k.writing.Unlock()
	v := r.Inventory
	v.NextRun = max(next, v.NextRun)
	if err := v.SetManifest(k.dir); err != nil { // it may have grown meanwhile, and been written down
		return err
	}
	return s.writeInventory(v)
}

// recordManifest writes the manifest's state down as it is now, with the tables that are
// known already. It costs two syncs.
func (s *Badger) recordManifest() error {
	k := &s.keeper
	k.writing.Lock()
	defer k.writing.Unlock()
	v := &tables.Inventory{}
	if k.known != nil {
		v.NextRun, v.Tables = k.known.NextRun, maps.Clone(k.known.Tables)
	}
	if err := v.SetManifest(k.dir); err != nil {
		return err
	}
	return s.writeInventory(v)
}

// writeInventory replaces the inventory when it differs. The caller holds writing.
func (s *Badger) writeInventory(v *tables.Inventory) error {
	k := &s.keeper
	if k.known != nil && v.NextRun == k.known.NextRun && v.ManifestSum == k.known.ManifestSum && maps.Equal(v.Tables, k.known.Tables) {
		return nil
	}
	if err := v.Write(vfs.OS{}, k.dir); err != nil {
		return err
	}
	k.known = v
	return nil
}

// closeTables takes the inventory of a folder that Badger has closed.
func (s *Badger) closeTables() error {
	k := &s.keeper
	k.writing.Lock()
	defer k.writing.Unlock()
	o := tables.Options{}
	if k.known != nil {
		o.Known = k.known.Tables
	}
	r, err := tables.Verify(context.Background(), k.dir, o)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	if s.Err() == nil { // else the newest may not be durable
		r.Inventory.NextRun = max(s.enc.next.Load(), r.Inventory.NextRun)
	}
	return s.writeInventory(r.Inventory)
}

// barrier returns when all that was appended before is durable.
func (s *Badger) barrier() error {
	done := make(chan error, 1)
	if !s.queue.push(&item{done: func(err error) { done <- err }}) {
		return ErrClosed
	}
	return <-done
}

// damaged notes that something stored is not what was written. The store goes on: what is
// not damaged is served.
func (s *Badger) damaged(err error) {
	k := &s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.damages != nil {
		k.damages.Inc()
	}
	if k.damage == nil {
		k.damage = err
		s.log.Error("stored data is damaged", "dir", k.dir, "err", err)
	}
}

// Damaged is the first damage to stored data that was found while the store is open, nil
// when none was. It stays until the folder is opened again.
func (s *Badger) Damaged() error {
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	return s.keeper.damage
}
