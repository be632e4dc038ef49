package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// listedDoc is a document of n different no-op tasks, of some 200 bytes each; every
// tenth waits for the one before it.
func listedDoc(n int) string {
	var b strings.Builder
	b.WriteString(`{"tag":"listed","tasks":{`)
	for i := range n {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, `"task-%07d":{"job":{"command":["/usr/bin/python3","/srv/sweep/simulate.py","--input","/data/part-%07d.parquet","--seed","%d"],"environment":["STEP=%d"],"cores":"1","memoryMB":"100","executor":"noop"}`,
			i, i, i*7919%1000003, i%97)
		if i > 0 && i%10 == 0 {
			fmt.Fprintf(&b, `,"parents":["task-%07d"]`, i-1)
		}
		b.WriteString("}")
	}
	b.WriteString("}}")
	return b.String()
}

// TestListedTasks: a document of 20 MB that lists 100,000 tasks is taken with at most
// three times its size in memory, beside a memtable of the store; the run survives a
// kill -9 in the middle and completes.
func TestListedTasks(t *testing.T) {
	const memtable = 40 << 20
	n := 100_000
	if e2etest.Race {
		n = 20_000
	}
	s := e2etest.Start(t)
	doc := listedDoc(n)
	_, before, err := s.Memory()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	run := s.Submit(doc)
	took := time.Since(begin)
	_, peak, err := s.Memory()
	if err != nil {
		t.Fatal(err)
	}
	grown := peak - before
	t.Logf("%d tasks, %d bytes: accepted in %v, %d MiB more at the peak, %.1f times the document", n, len(doc), took, grown>>20, float64(grown)/float64(len(doc)))
	if grown > 3*int64(len(doc))+memtable && !e2etest.Race {
		t.Errorf("the server has grown by %d MiB for a document of %d", grown>>20, len(doc)>>20)
	}
	s.Do("PATCH", e2etest.Path(run, "/state/PAUSED"), "") // it may be done already
	state := s.State(run)
	s = s.Crash()
	if got := s.State(run); got != state {
		t.Errorf("the run was %s and is %s", state, got)
	}
	last := fmt.Sprintf("task-%07d", n-1)
	if r := s.Want(200, "GET", e2etest.Path(run, "/task/"+last), ""); !strings.Contains(string(r.Body), fmt.Sprintf(`"/data/part-%07d.parquet"`, n-1)) {
		t.Errorf("the last task is %s", r.Body)
	}
	if state == "PAUSED" {
		s.Want(200, "PATCH", e2etest.Path(run, "/state/RUNNING"), "")
	}
	s.Await(run, "COMPLETED")
	if got := s.List("?all=1")[0].TaskCounts; got["COMPLETED"] != n {
		t.Errorf("counts %v", got)
	}
}

// TestKillInALongSubmission: whenever the server is killed while a long document
// comes, is planned or is stored, afterwards there is the whole run or nothing of it;
// an answer that was given holds.
func TestKillInALongSubmission(t *testing.T) {
	dir := t.TempDir()
	s := e2etest.Start(t, e2etest.Data(dir))
	doc := listedDoc(40_000)
	half := fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(doc), doc[:len(doc)/2])
	runs := 0
	for round := range 4 {
		if round == 0 {
			c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte(half)); err != nil {
				t.Fatal(err)
			}
			s = s.Crash()
			c.Close()
		} else {
			acknowledged := make(chan bool, 1)
			go func(s *e2etest.Server) {
				r, err := s.Try("POST", "/v1/dagrun", doc)
				acknowledged <- err == nil && r.Status == 200
			}(s)
			moment := time.NewTimer(time.Duration(rand.IntN(400)) * time.Millisecond)
			select {
			case ok := <-acknowledged:
				acknowledged <- ok
			case <-moment.C:
			}
			s = s.Crash()
			if <-acknowledged {
				runs++
			}
		}
		list := s.List("?all=1")
		if len(list) < runs || len(list) > runs+1 {
			t.Fatalf("round %d: %d runs, %d were acknowledged", round, len(list), runs)
		}
		runs = len(list) // one may have become durable whose answer was lost
		for _, r := range list {
			s.Await(r.RunID, "COMPLETED")
		}
		if names, err := filepath.Glob(filepath.Join(dir, "body-*")); err != nil || len(names) > 0 {
			t.Errorf("left in the data folder: %v %v", names, err)
		}
	}
}
