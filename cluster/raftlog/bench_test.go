package raftlog_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// counter is a machine whose cost is nil, so that the benchmark measures the log.
type counter struct{ at atomic.Uint64 }

// Apply notes the entry.
func (c *counter) Apply(index, _ uint64, _ []byte) error {
	c.at.Store(index)
	return nil
}

// Verify has an empty body.
func (*counter) Verify(uint64) error { return nil }

// Sync returns the last entry.
func (c *counter) Sync() (uint64, error) { return c.at.Load(), nil }

// Snapshot returns no rows.
func (*counter) Snapshot(uint64) (raftlog.Snapshot, error) {
	return struct {
		*bytes.Reader
		io.Closer
	}{bytes.NewReader(nil), io.NopCloser(nil)}, nil
}

// Restore notes the entry.
func (c *counter) Restore(index uint64, _ io.Reader) error {
	c.at.Store(index)
	return nil
}

// BenchmarkPropose measures proposals with the default settings, real files and, with three replicas, a
// network in memory: all of them share the processors and the disk. It reports one caller at a time and
// 16 of them.
func BenchmarkPropose(b *testing.B) {
	for _, replicas := range []int{1, 3} {
		for _, size := range []int{2 << 10, 64 << 10} {
			for _, callers := range []int{1, 16} {
				b.Run(fmt.Sprintf("replicas=%d/bytes=%d/callers=%d", replicas, size, callers), func(b *testing.B) {
					c := newBench(b, replicas)
					leader, epoch := c.lead()
					rows := bytes.Repeat([]byte("x"), size)
					b.SetBytes(int64(size))
					b.SetParallelism(callers) // times GOMAXPROCS; -cpu 1 makes it exact
					b.ResetTimer()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if _, err := leader.group.Propose(epoch, rows); err != nil {
								b.Error(err)
								return
							}
						}
					})
					b.StopTimer()
				})
			}
		}
	}
}

// newBench is newCluster with a machine that does no work, and without faults.
func newBench(b *testing.B, replicas int) *cluster {
	c := newCluster(b, 0, raftlog.DefaultSettings())
	var ids []raftlog.NodeID
	for i := range replicas {
		ids = append(ids, raftlog.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	for _, id := range ids {
		r := c.add(id)
		var err error
		if r.mux, err = raftlog.NewMux(raftlog.MuxConfig{Listener: c.network.Listen(id), Resolve: c.network.Resolve, Dial: c.network.Dial(id), Logger: testLogger()}); err != nil {
			b.Fatal(err)
		}
		if r.group, err = raftlog.Open(raftlog.Config{Group: 1, Node: id, Dir: r.dir, Machine: &counter{}, Mux: r.mux, Bootstrap: ids, Logger: testLogger()}.WithFiles(vfs.OS{})); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// BenchmarkSync is the floor of BenchmarkPropose with one caller: one write to the log's file system, and
// its sync.
func BenchmarkSync(b *testing.B) {
	for _, size := range []int{2 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			f, err := vfs.OS{}.OpenFile(filepath.Join(b.TempDir(), "file"), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			rows := bytes.Repeat([]byte("x"), size)
			b.SetBytes(int64(size))
			var at int64
			for b.Loop() {
				if _, err := f.WriteAt(rows, at); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				at += int64(size)
			}
		})
	}
}
