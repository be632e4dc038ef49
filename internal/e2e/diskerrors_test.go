package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/faults"
)

// TestCommitLogErrors: the server's log cannot be written, or not be synced, at some call
// under load. The server ends and says why; what it had acknowledged is there when it
// starts again, and every task runs once.
func TestCommitLogErrors(t *testing.T) {
	t.Parallel()
	rng := random(t)
	at := func() int { return 1 + rng.IntN(100) }
	for name, fault := range some(rng, map[string]faults.Fault{
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
			run := s.Submit(thousand(dir, "exec sleep 0.01"))
			s.AwaitTask(run, "t_0", "COMPLETED")
			if err := faults.WriteScript(e2etest.Script(data), fault); err != nil {
				t.Fatal(err)
			}
			var acknowledged []uint64
			for began := time.Now(); !e2etest.Over(s.Ended()); {
				if time.Since(began) > e2etest.Patience {
					t.Fatalf("the server does not end; failed: %v", hitsOf(t, data))
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
			hitsOf(t, data)
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
			checkThousand(t, s, run, dir)
			text, _ := os.ReadFile(filepath.Join(dir, "small"))
			// One more may have been stored whose answer did not come.
			if n := strings.Count(string(text), "small"); n != len(acknowledged) && n != len(acknowledged)+1 {
				t.Errorf("%d small runs were acknowledged, %d have run", len(acknowledged), n)
			}
		})
	}
}

// TestDiskErrorsAtStart: a call fails while a server begins, on a new folder or on one that
// was used, -damages/4 times. The server refuses to start, or ends, and says why, or goes on
// when the disk does; and the next one takes the folder as it is.
func TestDiskErrorsAtStart(t *testing.T) {
	t.Parallel()
	rng := random(t)
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
		failed, herr := faults.Hits(e2etest.Script(data))
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

// TestOutputErrors: what tasks print cannot be kept. Each task's result stands, its output
// is whole or says that it was cut, and no other bytes are served.
func TestOutputErrors(t *testing.T) {
	t.Parallel()
	rng := random(t)
	const tasks = 60
	at := func() int { return 1 + rng.IntN(tasks/2) }
	for name, fault := range some(rng, map[string]faults.Fault{
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
			eachOnce(t, s, run, tasks)
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
					cut++ // and the next one reads it
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
			t.Logf("%d of %d outputs were cut or not read; %d calls failed", cut, tasks, len(hitsOf(t, data)))
			if cut == 0 {
				t.Error("nothing was cut")
			}
		})
	}
}
