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

// VerifyOptions of Verify.
type VerifyOptions struct {
	// Rate bounds what is read, in bytes a second; 0 = as fast as it goes, on all
	// processors.
	Rate int64
	// Live: Badger has the folder open. Tables that are deleted meanwhile are passed over.
	Live bool
	// Known are tables that need not be read again.
	Known map[uint64]Fingerprint
	// Blocks: each block is checked, also of a table that the inventory knows.
	Blocks bool
	// Unreadable: a file that cannot be opened or read is a damage too, and the others are
	// read all the same.
	Unreadable bool
	// Wait is how a Rate is kept: it returns after d, or with the cause when ctx ends.
	// Nil = by the machine's clock.
	Wait func(ctx context.Context, d time.Duration) error

	between func() // the reads of inventory and manifest; nil = nothing
}

// Report is what Verify found.
type Report struct {
	Tables int      // that were read, and are whole
	Equal  int      // of these, the ones that were compared with the inventory as a whole
	Bytes  int64    // of these Tables
	Damage []Damage // by file and offset
	// Inventory is of the folder as it was found, without the tables that are damaged. Nil
	// when there is no manifest.
	Inventory *Inventory
	Stale     error // why the inventory that lies there was of no use; nil when it was
	Manifest  *Manifest
}

// Err is nil when nothing is damaged; else it names the first damage and counts the others.
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

// Latest is the newest version in any table.
func (r *Report) Latest() (version uint64) {
	if r.Inventory != nil {
		for _, t := range r.Inventory.Tables {
			version = max(version, t.Latest)
		}
	}
	return version
}

// Verify reads a folder of Badger's whole and says what is wrong in it. The error is that
// of a folder that cannot be read, or of ctx. It needs the index of one table, a window and
// a block for each processor, whatever the folder holds.
//
// Badger's checksums are of blocks as they are before compression, so they cost a
// decompression of everything. A table that the inventory knows was whole when it was
// entered: it is read and compared with the checksum of the file, which costs a sixth. Only
// when that differs its blocks are checked, to name those that are damaged.
func Verify(ctx context.Context, dir string, o VerifyOptions) (*Report, error) {
	r := &Report{}
	var mu sync.Mutex
	// wrongBy is the damage that an error means; nil when it means none.
	wrongBy := func(err error) (d *Damage) {
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
		wrong := wrongBy(err)
		if wrong == nil {
			return nil, err
		}
		report(wrong)
	}
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); !o.Unreadable || ext != ".vlog" && ext != ".mem" && f.Name() != "DISCARD" {
			continue // Badger opens these and writes nothing of ours into them
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
	// The inventory first: what it knows of the manifest must not be newer than the manifest
	// that it is compared with.
	was, stale := ReadInventory(dir)
	if o.between != nil {
		o.between()
	}
	r.Manifest, err = ReadManifest(dir)
	wrong := wrongBy(err)
	switch {
	case wrong != nil:
		report(wrong)
		return r, nil
	case errors.Is(err, fs.ErrNotExist):
		if name := remains(files); name != "" {
			report(damaged(filepath.Join(dir, manifestName), -1, "missing beside %s: it says which tables there are", name))
		}
		return r, nil
	case err != nil:
		return nil, err
	}
	m := r.Manifest
	if stale != nil {
		r.Stale, was = stale, &Inventory{}
		if wrong := wrongBy(stale); wrong != nil {
			r.Stale = wrong
		} else if !errors.Is(stale, fs.ErrNotExist) {
			return nil, stale
		}
	} else {
		was.compare(dir, m, report)
	}
	r.Inventory = &Inventory{
		ManifestSize: m.Size, ManifestSum: crc32.Checksum(m.whole, castagnoli), First: m.First,
		NextRun: was.NextRun, Tables: map[uint64]Fingerprint{},
	}
	err = r.readTables(ctx, dir, o, was, report, &mu)
	slices.SortFunc(r.Damage, func(a, b Damage) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Offset, b.Offset))
	})
	return r, err
}

// remains names a file that Badger makes only after its manifest; "" when there is none.
func remains(files []fs.DirEntry) string {
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
			t := &table{pause: pacer(ctx, o)}
			for id := range ids {
				path := filepath.Join(dir, tableName(id))
				known, expect := was.Tables[id]
				if o.Blocks || !expect {
					known = Fingerprint{}
				}
				is, found, err := t.verifyFile(path, r.Manifest.Tables[id], known)
				if o.Live && (err != nil || len(found) > 0) && gone(dir, id) {
					continue
				}
				if errors.Is(err, fs.ErrNotExist) {
					found, err = append(found, damaged(path, -1, "missing: %s names it", manifestName)), nil
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
				if t.equal {
					r.Equal++
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

// gone tells whether Badger has given a table up since the manifest was read.
func gone(dir string, id uint64) bool {
	m, err := ReadManifest(dir)
	if err != nil {
		return false
	}
	_, named := m.Tables[id]
	return !named
}

// verifyFile reads a table. known is what it must be as a whole; the zero Fingerprint when
// that is not known, and for each block to be checked.
func (t *table) verifyFile(path string, e Entry, known Fingerprint) (is Fingerprint, found []*Damage, err error) {
	f, err := vfs.Open(path)
	if errors.Is(err, vfs.ErrNotRegular) {
		return is, []*Damage{damaged(path, -1, "not a regular file")}, nil
	}
	if err != nil {
		return is, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return is, nil, err
	}
	t.path, t.entry, t.file, t.size, t.equal = path, e, f, info.Size(), false
	t.window, t.at = t.window[:0], 0
	if known != (Fingerprint{}) && known.Size == t.size {
		// An error is met again below, which names the block.
		if sum, err := t.readSum(); err == nil && sum == known.Sum {
			t.equal = true
			return known, nil, nil
		}
		t.window, t.at = t.window[:0], 0
	}
	err = t.verify(func(d *Damage) { found = append(found, d) })
	var wrong *Damage
	if errors.As(err, &wrong) { // the device cannot read it
		found, err = append(found, wrong), nil
	}
	return Fingerprint{Size: t.size, Sum: t.sum, Latest: t.latest}, found, err
}

// pacer is called before so many bytes are read. It spreads reading over time, and ends it
// with ctx.
func pacer(ctx context.Context, o VerifyOptions) func(bytes int) error {
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
