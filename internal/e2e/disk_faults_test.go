package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestCommitLogErrors: a write or sync of the server's log fails at some call under load. The server
// ends and gives the reason. All acknowledged runs are there when it starts again, and every task
// runs once.
func TestCommitLogErrors(t *testing.T) {
	t.Parallel()
	tasks := max(scaled(150), 100)
	rng := seededRandom(t)
	at := func() int { return 1 + rng.IntN(60) }
	for name, fault := range sampleCases(rng, map[string]faults.Fault{
		"a record":               {Op: faults.Write, Path: "0*", First: at(), Err: syscall.EIO},
		"a torn record":          {Op: faults.Write, Path: "0*", First: at(), Err: syscall.EIO, Short: 1 + rng.IntN(2000)},
		"a sync":                 {Op: faults.Sync, Path: "0*", First: at(), Err: syscall.EIO},
		"another sync":           {Op: faults.Sync, Path: "0*", First: at(), Err: syscall.EIO},
		"a sync, once":           {Op: faults.Sync, Path: "0*", First: at(), Times: 1, Err: syscall.EIO},
		"the last number's file": {Op: faults.Write, Path: "state", First: at(), Err: syscall.EIO},
	}) {
		t.Run(name, func(t *testing.T) {
			t.Logf("%+v", fault)
			data, dir := filepath.Join(t.TempDir(), "data"), t.TempDir()
			s := e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
			run := s.Submit(processes(dir, tasks, "exec sleep 0.01"))
			s.AwaitTask(run, "t_0", "COMPLETED")
			if err := faults.WriteScript(e2etest.Script(data), fault); err != nil {
				t.Fatal(err)
			}
			var acknowledged []uint64
			for began := time.Now(); !e2etest.Over(s.Ended()); {
				if time.Since(began) > e2etest.Patience {
					t.Fatalf("the server does not end; failed: %v", faultHits(t, data))
				}
				small := fmt.Sprintf(`{"tag":"%d","tasks":{"a":{"job":{"commandString":"echo small >>%s/small"}}}}`, len(acknowledged), dir)
				r, err := s.Try("POST", "/v1/dagrun", small)
				var got struct{ RunID uint64 }
				switch {
				case err != nil:
				case r.Status == http.StatusOK:
					r.Decode(t, &got)
					acknowledged = append(acknowledged, got.RunID)
				case r.Status != http.StatusServiceUnavailable:
					t.Fatalf("%d: %s", r.Status, r.Body)
				}
			}
			if s.ExitCode() == 0 || !strings.Contains(s.Log(), "the server cannot go on") || !strings.Contains(s.Log(), "input/output error") {
				t.Errorf("it ended with code %d", s.ExitCode())
			}
			faultHits(t, data)
			if err := faults.WriteScript(e2etest.Script(data)); err != nil {
				t.Fatal(err)
			}
			s = s.Restart()
			for i, id := range acknowledged {
				s.Await(id, "COMPLETED")
				if doc := s.Get(id); doc.Tag != fmt.Sprint(i) || len(doc.TaskAttempts["a"]) != 1 {
					t.Errorf("run %d: %+v", id, doc)
				}
			}
			checkProcesses(t, s, run, dir, tasks)
			text, _ := os.ReadFile(filepath.Join(dir, "small"))
			// One more may have been stored without an answer.
			if n := strings.Count(string(text), "small"); n != len(acknowledged) && n != len(acknowledged)+1 {
				t.Errorf("%d small runs were acknowledged, %d have run", len(acknowledged), n)
			}
		})
	}
}

// TestDiskErrorsAtStart: a call fails while a server starts, on a new folder or on a used one,
// -damages/4 times. The server refuses to start or ends and gives the reason, or goes on when the
// disk does. The next server accepts the folder.
func TestDiskErrorsAtStart(t *testing.T) {
	t.Parallel()
	rng := seededRandom(t)
	write := []faults.Op{faults.Create, faults.Write, faults.Sync, faults.Rename}
	places := []struct {
		path string
		ops  []faults.Op
	}{
		{"identity*", write}, {"state*", write}, {"0*", write}, {"workers*", write},
		{"data", []faults.Op{faults.SyncDir}}, {"log", []faults.Op{faults.SyncDir, faults.MkdirAll}},
		{"output", []faults.Op{faults.MkdirAll}}, {"LOCK", []faults.Op{faults.Lock}},
	}
	one := e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("true")})
	outcomes := map[string]int{}
	for range max(1, scaled(*damagesFlag)/4) {
		data := filepath.Join(t.TempDir(), "data")
		used := rng.IntN(2) > 0
		if used {
			s := e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
			s.Complete(one)
			s.Kill()
		}
		place := places[rng.IntN(len(places))]
		fault := faults.Fault{Op: place.ops[rng.IntN(len(place.ops))], Path: place.path, First: 1 + rng.IntN(2), Err: syscall.EIO}
		if err := faults.WriteScript(e2etest.Script(data), fault); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%s of %s, from call %d on, used before: %v", fault.Op, fault.Path, fault.First, used)
		s, err := e2etest.TryStart(t, e2etest.Faulty(t), e2etest.Data(data))
		failed, herr := faults.ScriptHits(e2etest.Script(data))
		if err := errors.Join(herr, faults.WriteScript(e2etest.Script(data))); err != nil {
			t.Fatal(err)
		}
		outcome := "refused"
		switch {
		case err != nil && !strings.Contains(err.Error(), "input/output error"):
			t.Errorf("%s: %v", what, err)
		case err != nil:
		case len(failed) == 0:
			outcome = "no such call"
		case fault.Path == "workers*":
			outcome = "went on"
			s.Complete(one)
		default:
			outcome = "ended"
			e2etest.Eventually(t, what+": the server ends", func() bool { return e2etest.Over(s.Ended()) })
			if !strings.Contains(s.Log(), "input/output error") {
				t.Errorf("%s: the log does not say it", what)
			}
		}
		if s != nil {
			s.Kill()
		}
		outcomes[outcome]++
		t.Logf("%s: %s", what, outcome)
		s = e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
		if used && len(s.List("?all=1")) == 0 {
			t.Errorf("%s: the run is gone", what)
		}
		s.Complete(one)
		s.Kill()
	}
	t.Log(outcomes)
}

// TestOutputErrors: the output of tasks cannot be kept. The result of each task stands. Its output
// is whole or says that it was cut, and other bytes are never served.
func TestOutputErrors(t *testing.T) {
	t.Parallel()
	rng := seededRandom(t)
	const tasks = 40
	at := func() int { return 1 + rng.IntN(tasks/2) }
	for name, fault := range sampleCases(rng, map[string]faults.Fault{
		"the file":      {Op: faults.Create, Path: "*.out", Times: 3, Err: syscall.EIO},
		"a write":       {Op: faults.Write, Path: "*.out", First: at(), Times: 3, Err: syscall.EIO},
		"a torn write":  {Op: faults.Write, Path: "*.out", First: at(), Times: 3, Err: syscall.EIO, Short: 1 + rng.IntN(9000)},
		"its size":      {Op: faults.Truncate, Path: "*.out", First: at(), Times: 3, Err: syscall.EIO},
		"a sync":        {Op: faults.Sync, Path: "*.out", First: 1 + rng.IntN(5), Times: 1, Err: syscall.EIO},
		"the name":      {Op: faults.SyncDir, Path: "output", Times: 1, Err: syscall.EIO},
		"a full disk":   {Op: faults.Write, Path: "*.out", First: at(), Times: 5, Err: syscall.ENOSPC, Short: 100},
		"reading again": {Op: faults.Read, Path: "*.out", First: at(), Times: 3, Err: syscall.EIO},
	}) {
		t.Run(name, func(t *testing.T) {
			t.Logf("%+v", fault)
			data := filepath.Join(t.TempDir(), "data")
			s := e2etest.Start(t, e2etest.Faulty(t), e2etest.Data(data))
			arm := func() {
				if err := faults.WriteScript(e2etest.Script(data), fault); err != nil {
					t.Fatal(err)
				}
			}
			if fault.Op != faults.Read {
				arm()
			}
			run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"t": e2etest.Sh("printf '%010000d' {{N}}")}).
				With("parameters", map[string]any{"N": e2etest.Numbers(tasks)}))
			checkEachRanOnce(t, s, run, tasks)
			if fault.Op == faults.Read {
				arm()
			}
			cut := 0
			doc := s.Get(run)
			for n := range tasks {
				task := fmt.Sprintf("t_%d", n)
				want := fmt.Sprintf("%010000d", n)
				if text := doc.TaskAttempts[task][0].OutputLog; text == "[caravan: output not readable]" && fault.Op == faults.Read {
					cut++
				} else if text != want && !(strings.HasPrefix(want, text[:min(len(text), 4096)]) && strings.Contains(text, "bytes cut")) {
					t.Errorf("%s: the document has %d bytes: %.200s", task, len(text), text)
				}
				r := s.Do("GET", e2etest.Path(run, "/task/"+task+"/log"), "")
				switch body := string(r.Body); {
				case r.Status == http.StatusOK && body == want:
				case r.Status == http.StatusInternalServerError && fault.Op == faults.Read:
					cut++ // and the next attempt reads it
					e2etest.Eventually(t, task+" is read", func() bool {
						r := s.Do("GET", e2etest.Path(run, "/task/"+task+"/log"), "")
						return r.Status == http.StatusOK && string(r.Body) == want
					})
				case r.Status == http.StatusOK && strings.HasPrefix(want, body[:min(len(body), 4096)]) && strings.Contains(body[min(len(body), 4096):], "bytes cut"):
					cut++
					if log := doc.TaskAttempts[task][0].ExecutorLog; !strings.Contains(log, "output cut to") {
						t.Errorf("%s: executorLog %q", task, log)
					}
				default:
					t.Errorf("%s: %d, %d bytes: %.200s", task, r.Status, len(body), body)
				}
			}
			t.Logf("%d of %d outputs were cut or not read; %d calls failed", cut, tasks, len(faultHits(t, data)))
			if cut == 0 {
				t.Error("nothing was cut")
			}
		})
	}
}

// newPowerDisk makes a disk whose power can be cut, or skips the test: mounting needs root.
func newPowerDisk(t *testing.T) *faults.Ext4 {
	t.Helper()
	base := t.TempDir()
	d, err := faults.NewExt4(filepath.Join(base, "image"), filepath.Join(base, "mounted"), 1<<30)
	if err != nil {
		t.Skipf("a disk whose power can be cut is not possible here: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestPowerCut cuts the power of the data folder's device under load, -cuts times, and kills server,
// worker and tasks with it. Every acknowledged run is there afterwards, each run that was seen
// COMPLETED still is, and ids and attempts are unique.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	rng := seededRandom(t)
	disk := newPowerDisk(t)
	lines := filepath.Join(t.TempDir(), "lines")
	s := e2etest.Start(t, e2etest.Data(filepath.Join(disk.Dir(), "data")))
	tags := map[uint64]string{} // acknowledged
	completed := map[uint64]bool{}
	for cut := range scaled(*cutsFlag) {
		acked := loadUntilCut(t, s, disk, fmt.Sprint("cut-", cut), lines, 20+rng.IntN(300), completed)
		s.Kill()
		for _, pid := range testenv.Workers(s.Config().Data) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := disk.Remount(e2etest.Patience); err != nil {
			t.Fatal(err)
		}
		s = s.Restart()
		for id, tag := range acked {
			if other, ok := tags[id]; ok {
				t.Fatalf("cut %d: run %d was given to %s and to %s", cut, id, other, tag)
			}
			tags[id] = tag
		}
		for id, tag := range tags {
			if got := s.Get(id).Tag; got != tag {
				t.Fatalf("cut %d: run %d was acknowledged as %q, now it is %q", cut, id, tag, got)
			}
		}
		for id := range completed {
			if got := s.State(id); got != "COMPLETED" {
				t.Fatalf("cut %d: run %d was COMPLETED, now it is %s", cut, id, got)
			}
		}
	}
	for id := range tags {
		s.Await(id, "COMPLETED")
	}
	text, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		if seen[l] {
			t.Errorf("attempt %q was started twice", l)
		}
		seen[l] = true
	}
	t.Logf("%d runs acknowledged, %d seen COMPLETED before a cut, %d attempts of processes", len(tags), len(completed), len(seen))
	// The server must have ended before its device is unmounted.
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Error(err)
	}
}

// loadUntilCut submits from several connections and cuts the power after n answers. It returns the
// acknowledged runs, and adds the runs that were seen COMPLETED.
func loadUntilCut(t *testing.T, s *e2etest.Server, disk *faults.Ext4, tag, lines string, n int, completed map[uint64]bool) map[uint64]string {
	t.Helper()
	var mu sync.Mutex
	acked := map[uint64]string{}
	answers := make(chan struct{}, n)
	stopped := make(chan struct{})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stopped:
					return
				default:
				}
				name := fmt.Sprint(tag, "-", i, "-", j)
				task := e2etest.Noop("")
				if j%4 == 0 {
					task = e2etest.Sh(`echo "$CARAVAN_RUN_ID $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + lines)
				}
				r, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"x": task}).With("tag", name)))
				if err != nil || r.Status != 200 {
					return // the power was cut
				}
				var got struct{ RunID uint64 }
				r.Decode(t, &got)
				mu.Lock()
				acked[got.RunID] = name
				mu.Unlock()
				if j%3 == 0 {
					r, err := s.Try("GET", e2etest.Path(got.RunID, "/state?wait=1s"), "")
					if err == nil && strings.Contains(string(r.Body), "COMPLETED") {
						mu.Lock()
						completed[got.RunID] = true
						mu.Unlock()
					}
				}
				select {
				case answers <- struct{}{}:
				case <-stopped:
					return
				}
			}
		})
	}
	for range n {
		<-answers
	}
	if err := disk.CutPower(); err != nil {
		t.Skip(err)
	}
	close(stopped)
	// A server without its disk refuses or ends; a client must not wait for it.
	s.Kill()
	all.Wait()
	return acked
}
