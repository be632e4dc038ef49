package e2e

import (
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// soakDoc is the graph of the soak: a chain and a fan of no-op tasks.
const soakDoc = `{"tag":"soak","parameters":{"N":["0","1","2","3","4","5","6","7"]},"jobDefaults":{"executor":"noop"},"tasks":{
	"a":{"job":{}},"b":{"job":{"command":["{{N}}"]},"parents":["a"]},"c":{"job":{},"parents":["b"]}}}`

// resourceSample is the resource usage of a server at one moment, and its response times before
// that.
type resourceSample struct {
	rss, disk       int64
	fds, goroutines int
	runs            int64
	p50, p99        time.Duration
}

// TestSoak keeps up 80 % of the rate at which the server accepts graphs from eight connections. In
// the second half memory, goroutines, descriptors, disk (with retention on) and the time of a
// submission may grow by at most a quarter.
func TestSoak(t *testing.T) {
	const clients, parts = 8, 10
	long := *soakFlag
	if e2etest.Race {
		long = min(long, 3*time.Second)
	}
	s := e2etest.Start(t, e2etest.Args("--retain-runs", "2000"))
	most := applyLoad(t, s, clients, 2*time.Second, 0)
	rate := float64(most.runs) / 2 * 0.8
	t.Logf("%.0f submissions a second at most, of 10 tasks each; 80 %% of it for %v", float64(most.runs)/2, long)
	var series []resourceSample
	for range parts {
		p := applyLoad(t, s, clients, long/parts, rate)
		series = append(series, p)
		t.Logf("%6d runs, p50 %8v, p99 %8v, RSS %4d MB, disk %4d MB, %3d descriptors, %3d goroutines",
			p.runs, p.p50.Round(time.Microsecond), p.p99.Round(time.Microsecond), p.rss>>20, p.disk>>20, p.fds, p.goroutines)
	}
	if long < time.Minute {
		return // too early for a plateau: retention and Badger's compaction have hardly begun
	}
	early, late := maximum(series[3:parts/2+2]), maximum(series[parts/2+2:])
	for what, v := range map[string][2]int64{
		"RSS":         {early.rss, late.rss - 32<<20},
		"disk":        {early.disk, late.disk - 64<<20},
		"descriptors": {int64(early.fds), int64(late.fds - 8)},
		"goroutines":  {int64(early.goroutines), int64(late.goroutines - 8)},
		"p99":         {int64(early.p99), int64(late.p99 - 10*time.Millisecond)},
	} {
		if v[1] > v[0]+v[0]/4 {
			t.Errorf("%s grows: at most %d in the middle, %d at the end", what, v[0], v[1])
		}
	}
}

// maximum is the largest value of each figure.
func maximum(series []resourceSample) (w resourceSample) {
	for _, p := range series {
		w.rss, w.disk, w.p99 = max(w.rss, p.rss), max(w.disk, p.disk), max(w.p99, p.p99)
		w.fds, w.goroutines = max(w.fds, p.fds), max(w.goroutines, p.goroutines)
	}
	return w
}

// applyLoad submits graphs for a period, at a rate per second (0: as fast as possible), and returns
// the resource usage at its end.
func applyLoad(t *testing.T, s *e2etest.Server, clients int, long time.Duration, rate float64) (p resourceSample) {
	t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var next atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			for {
				at := begin // the planned time of this submission
				if rate > 0 {
					at = begin.Add(time.Duration(float64(next.Add(1)) / rate * float64(time.Second)))
				}
				if at.Sub(begin) >= long || time.Since(begin) >= long {
					return
				}
				<-time.After(time.Until(at))
				sent := time.Now()
				r, err := s.Try("POST", "/v1/dagrun", soakDoc)
				if err != nil || r.Status != 200 {
					t.Errorf("submission: %d, %v: %s", r.Status, err, r.Body)
					return
				}
				mu.Lock()
				took = append(took, time.Since(sent))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(took) == 0 {
		t.Fatal("nothing was submitted")
	}
	slices.Sort(took)
	p.runs, p.p50, p.p99 = int64(len(took)), took[len(took)/2], took[len(took)*99/100]
	var err error
	if p.rss, _, err = s.Memory(); err != nil {
		t.Fatal(err)
	}
	if p.fds, err = s.FDs(); err != nil {
		t.Fatal(err)
	}
	goroutines, err := s.Metric("go_goroutines")
	if err != nil {
		t.Fatal(err)
	}
	p.goroutines, p.disk = int(goroutines), diskUsage(t, s.Config().Data)
	return p
}

// diskUsage sums the files of a folder, some of which may disappear during the walk.
func diskUsage(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512 // mapped files are larger than their content
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
