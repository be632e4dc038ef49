package badgerguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// VerifyOptions are the options of Verify.
type VerifyOptions struct {
	// Rate bounds the reads, in bytes a second; 0 = as fast as possible, on all processors.
	Rate int64
	// Live: Badger has the folder open. Tables that Badger deletes in the meantime are skipped.
	Live bool
	// Known are tables that need not be read again.
	Known map[uint64]Fingerprint
	// Blocks: each block is verified, also of a table that the inventory knows.
	Blocks bool
	// Unreadable: a file that cannot be opened or read is a damage, too, and the others are read all
	// the same.
	Unreadable bool
	// Wait keeps the Rate: it returns after d, or with the cause when ctx ends. Nil waits by the
	// machine's clock.
	Wait func(ctx context.Context, d time.Duration) error

	between func() // called between the reads of inventory and manifest; tests set it
}

// Report is the result of Verify.
type Report struct {
	Tables         int      // number of tables that were read and are whole
	MatchInventory int      // of these, the tables whose checksum as a whole is that of the inventory
	Bytes          int64    // of these Tables
	Damage         []Damage // by file and offset
	// Inventory describes the folder as it was found, without damaged tables. Nil without a manifest.
	Inventory *Inventory
	Stale     error // why the stored inventory was of no use; nil when it was used
	Manifest  *Manifest
}

// Err returns nil for a whole folder; else it names the first damage and counts the others.
func (r *Report) Err() error {
	switch n := len(r.Damage); n {
	case 0:
		return nil
	case 1:
		return &r.Damage[0]
	default:
		return fmt.Errorf("%w (and %d more)", &r.Damage[0], n-1)
	}
}

// Latest returns the newest version in any table.
func (r *Report) Latest() (version uint64) {
	if r.Inventory != nil {
		for _, t := range r.Inventory.Tables {
			version = max(version, t.Latest)
		}
	}
	return version
}

// Verify reads a folder of Badger and reports all damage in it. The error is that of a folder that
// cannot be read, or of ctx. It needs memory for the index of one table, a window and a block for each
// processor, whatever the folder holds.
//
// Badger's checksums are of blocks before compression, so verifying them decompresses everything. A
// table that the inventory knows was whole when it was entered. It is read and compared with the
// checksum of the file, which costs a sixth. Only when that differs its blocks are verified, to name
// the damaged ones.
func Verify(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	r := &Report{}
	var mu sync.Mutex
	// damageOf returns the damage that an error means; nil when it is not a damage.
	damageOf := func(err error) (d *Damage) {
		if !errors.As(err, &d) && o.Unreadable {
			d = unreadable(err)
		}
		return d
	}
	report := func(d *Damage) {
		mu.Lock()
		defer mu.Unlock()
		r.Damage = append(r.Damage, *d)
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkRegistry(dir); err != nil {
		wrong := damageOf(err)
		if wrong == nil {
			return nil, err
		}
		report(wrong)
	}
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); !o.Unreadable || ext != ".vlog" && ext != ".mem" && f.Name() != "DISCARD" {
			continue // Badger opens these, and they hold no row of ours
		}
		f, err := vfs.Open(filepath.Join(dir, f.Name()))
		if err == nil {
			f.Close()
		} else if wrong := unreadable(err); wrong != nil {
			report(wrong)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	// The inventory is read first: its knowledge of the manifest must not be newer than the manifest
	// that it is compared with.
	known, stale := ReadInventory(dir)
	if o.between != nil {
		o.between()
	}
	r.Manifest, err = ReadManifest(dir)
	wrong := damageOf(err)
	switch {
	case wrong != nil:
		report(wrong)
		return r, nil
	case errors.Is(err, fs.ErrNotExist):
		if name := leftoverFile(files); name != "" {
			report(newDamage(filepath.Join(dir, manifestName), -1, "missing, and %s exists: the manifest says which tables exist", name))
		}
		return r, nil
	case err != nil:
		return nil, err
	}
	m := r.Manifest
	if stale != nil {
		r.Stale, known = stale, &Inventory{}
		if wrong := damageOf(stale); wrong != nil {
			r.Stale = wrong
		} else if !errors.Is(stale, fs.ErrNotExist) {
			return nil, stale
		}
	} else {
		known.compareManifest(dir, m, report)
	}
	r.Inventory = &Inventory{
		ManifestSize: m.Size, ManifestSum: crc32.Checksum(m.whole, castagnoli), First: m.First,
		NextRun: known.NextRun, Tables: map[uint64]Fingerprint{},
	}
	err = r.readTables(ctx, dir, o, known, report, &mu)
	slices.SortFunc(r.Damage, func(a, b Damage) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Offset, b.Offset))
	})
	return r, err
}

// leftoverFile names a file that Badger makes only after its manifest; "" without one.
func leftoverFile(files []fs.DirEntry) string {
	for _, f := range files {
		name := f.Name()
		if name == inventoryName || name == registryName {
			return name
		}
		switch filepath.Ext(name) {
		case tableSuffix, ".mem", ".vlog":
			return name
		}
	}
	return ""
}

// readTables reads the tables that the manifest names.
func (r *Report) readTables(ctx context.Context, dir string, o VerifyOptions, was *Inventory, report func(*Damage), mu *sync.Mutex) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	workers := runtime.GOMAXPROCS(0)
	if o.Rate > 0 {
		workers = 1
	}
	ids := make(chan uint64)
	var wg sync.WaitGroup
	for range min(workers, len(r.Manifest.Tables)) {
		wg.Go(func() {
			t := &tableReader{pause: newPacer(ctx, o)}
			for id := range ids {
				path := filepath.Join(dir, tableName(id))
				known, expect := was.Tables[id]
				if o.Blocks || !expect {
					known = Fingerprint{}
				}
				is, found, err := t.verifyFile(path, r.Manifest.Tables[id], known)
				if o.Live && (err != nil || len(found) > 0) && isDeleted(dir, id) {
					continue
				}
				if errors.Is(err, fs.ErrNotExist) {
					found, err = append(found, newDamage(path, -1, "missing: %s names it", manifestName)), nil
				}
				if err != nil && o.Unreadable {
					if wrong := unreadable(err); wrong != nil {
						found, err = append(found, wrong), nil
					}
				}
				if err != nil {
					cancel(err)
					continue
				}
				for _, d := range found {
					report(d)
				}
				if len(found) > 0 {
					continue
				}
				if wrong := was.compareTable(path, id, is); wrong != nil {
					report(wrong)
					continue
				}
				mu.Lock()
				r.Tables++
				if t.matchesInventory {
					r.MatchInventory++
				}
				r.Bytes += is.Size
				r.Inventory.Tables[id] = is
				mu.Unlock()
			}
		})
	}
	for _, id := range slices.Sorted(maps.Keys(r.Manifest.Tables)) {
		if known, ok := o.Known[id]; ok {
			mu.Lock()
			r.Inventory.Tables[id] = known
			mu.Unlock()
			continue
		}
		select {
		case ids <- id:
		case <-ctx.Done():
		}
	}
	close(ids)
	wg.Wait()
	return context.Cause(ctx)
}

// isDeleted reports whether Badger has deleted a table since the manifest was read. A manifest that
// cannot be read does not excuse a damage.
func isDeleted(dir string, id uint64) bool {
	m, err := ReadManifest(dir)
	if err != nil {
		return false
	}
	_, named := m.Tables[id]
	return !named
}

// verifyFile reads a table. known is the expected fingerprint; the zero Fingerprint means that it is
// unknown, or that each block must be verified.
func (t *tableReader) verifyFile(path string, e Entry, known Fingerprint) (is Fingerprint, found []*Damage, err error) {
	f, err := vfs.Open(path)
	if errors.Is(err, vfs.ErrNotRegular) {
		return is, []*Damage{newDamage(path, -1, "not a regular file")}, nil
	}
	if err != nil {
		return is, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return is, nil, err
	}
	t.path, t.entry, t.file, t.size, t.matchesInventory = path, e, f, info.Size(), false
	t.window, t.windowAt = t.window[:0], 0
	if known != (Fingerprint{}) && known.Size == t.size {
		// The reads below meet the same error, and name the block.
		if sum, err := t.readChecksum(); err == nil && sum == known.Sum {
			t.matchesInventory = true
			return known, nil, nil
		}
		t.window, t.windowAt = t.window[:0], 0
	}
	err = t.verify(func(d *Damage) { found = append(found, d) })
	var wrong *Damage
	if errors.As(err, &wrong) { // the device cannot read it
		found, err = append(found, wrong), nil
	}
	return Fingerprint{Size: t.size, Sum: t.checksum, Latest: t.newestVersion}, found, err
}

// newPacer returns a function that is called before so many bytes are read. It spreads reads over
// time, and ends them with ctx.
func newPacer(ctx context.Context, o VerifyOptions) func(bytes int) error {
	wait := o.Wait
	if wait == nil {
		wait = sleep
	}
	return func(bytes int) error {
		if o.Rate <= 0 {
			return context.Cause(ctx)
		}
		return wait(ctx, time.Duration(int64(bytes)*int64(time.Second)/o.Rate))
	}
}

// sleep returns after d, or when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
