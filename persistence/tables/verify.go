package tables

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
)

// Options of Verify.
type Options struct {
	// Rate bounds what is read, in bytes a second; 0 = as fast as it goes, on all
	// processors.
	Rate int64
	// Live: Badger has the folder open. Tables that are deleted meanwhile are passed over.
	Live bool
	// Known are tables that need not be read again.
	Known map[uint64]Fingerprint
}

// Report is what Verify found.
type Report struct {
	Tables int      // that were read
	Bytes  int64    // of them
	Damage []Damage // by file and offset
	// Inventory is of the folder as it was found. Nil when there is no manifest.
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
// of a folder that cannot be read, or of ctx. It needs the index of one table and some
// MB for each processor.
func Verify(ctx context.Context, dir string, o Options) (*Report, error) {
	r := &Report{}
	var mu sync.Mutex
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
	var wrong *Damage
	if err := checkRegistry(dir); errors.As(err, &wrong) {
		report(wrong)
	} else if err != nil {
		return nil, err
	}
	r.Manifest, err = ReadManifest(dir)
	switch {
	case errors.As(err, &wrong):
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
	was, err := ReadInventory(dir)
	if err != nil {
		r.Stale, was = err, &Inventory{}
		if !errors.As(err, &wrong) && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
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
func (r *Report) readTables(ctx context.Context, dir string, o Options, was *Inventory, report func(*Damage), mu *sync.Mutex) error {
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
			t := &table{pause: pacer(ctx, o.Rate)}
			for id := range ids {
				path := filepath.Join(dir, tableName(id))
				is, found, err := t.verifyFile(path, id, r.Manifest.Tables[id])
				if o.Live && (err != nil || len(found) > 0) && gone(dir, id) {
					continue
				}
				if errors.Is(err, fs.ErrNotExist) {
					found, err = append(found, damaged(path, -1, "missing: %s names it", manifestName)), nil
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
				was.compareTable(path, id, is, report)
				mu.Lock()
				r.Tables++
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

// verifyFile reads a table. Its buffers are used again for the next one.
func (t *table) verifyFile(path string, id uint64, e Entry) (is Fingerprint, found []*Damage, err error) {
	f, err := os.Open(path)
	if err != nil {
		return is, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return is, nil, err
	}
	if !info.Mode().IsRegular() {
		return is, []*Damage{damaged(path, -1, "not a regular file")}, nil
	}
	t.path, t.id, t.entry, t.file, t.size = path, id, e, f, info.Size()
	t.window, t.at = t.window[:0], 0
	err = t.verify(func(d *Damage) { found = append(found, d) })
	var wrong *Damage
	if errors.As(err, &wrong) { // the device cannot read it
		found, err = append(found, wrong), nil
	}
	return Fingerprint{Size: t.size, Sum: t.sum, Latest: t.latest}, found, err
}

// pacer spreads reading over time.
func pacer(ctx context.Context, rate int64) func(int) error {
	if rate <= 0 {
		return func(int) error { return context.Cause(ctx) }
	}
	return func(bytes int) error {
		select {
		case <-time.After(time.Duration(int64(bytes) * int64(time.Second) / rate)):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
