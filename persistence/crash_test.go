package persistence_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

const (
	writerEnv = "CARAVAN_TEST_WRITER"
	fillerEnv = "CARAVAN_TEST_FILLER"
	realEnv   = "CARAVAN_TEST_REAL"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		write(dir)
		return
	}
	if dir := os.Getenv(fillerEnv); dir != "" {
		fill(dir, os.Getenv(realEnv) == "true")
		return
	}
	testenv.VerifyNoLeaks(m)
}

// write is the process to be killed: it prints "run N" once run N is acknowledged.
// Every 17th run is too big for one transaction; every run is one batch.
func write(dir string) {
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir}))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	next, err := s.NextRun()
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				done := make(chan error, 1)
				mu.Lock()
				b := crashBatch(next)
				next++
				b.Done = func(err error) { done <- err }
				s.Append(b)
				mu.Unlock()
				if err := <-done; err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				fmt.Println("run", b.Run) // one write call per line
			}
		})
	}
	wg.Wait()
}

func crashBatch(run messages.RunID) *persistence.Batch {
	b := journaltest.NewRun(run, "crash", fmt.Sprint("definition ", run))
	if run%17 == 3 {
		b.Create.Definition = incompressibleBytes(run, 700<<10)
	}
	b.Create.IdempotencyKey = fmt.Sprint("key ", run)
	b.Seq, b.Records = 1, []byte("records")
	b.Attempts = []messages.AttemptRecord{{Task: 5, Attempt: 1}, {Task: 5000, Attempt: 1}}
	b.Set = &persistence.GeneratedSet{N: 1, JSON: []byte("{}")}
	b.Snapshot = &persistence.SnapshotPart{Chunks: []persistence.Chunk{{Index: 1, Data: []byte("chunk")}}}
	if run%2 == 0 {
		b.Summary.State = dag.RunCompleted
	}
	return b
}

func incompressibleBytes(run messages.RunID, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(run), byte(run >> 8)}).Read(p)
	return p
}

// TestAcknowledgedRunsSurviveKill: SIGKILL at random moments; what was acknowledged is there, and
// every batch is there whole or not at all.
func TestAcknowledgedRunsSurviveKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := map[messages.RunID]bool{}
	checked := messages.RunID(0)
	rounds := 10
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		kill(t, dir, acknowledged, 10+rand.IntN(40))
		s := open(t, dir)
		next, err := s.NextRun()
		if err != nil {
			t.Fatal(err)
		}
		for run := range acknowledged {
			if run >= next {
				t.Fatalf("run %d was acknowledged, the next run is %d", run, next)
			}
		}
		if round == rounds-1 {
			checked = 0 // all of them once more
		}
		for run := checked; run < next; run++ {
			checkRunIsWhole(t, s, run)
		}
		checked = next
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) < 10*rounds {
		t.Errorf("only %d runs were acknowledged", len(acknowledged))
	}
}

// kill runs the writer until it has acknowledged n more runs and then a random
// moment longer.
func kill(t *testing.T, dir string, acknowledged map[messages.RunID]bool, n int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), writerEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var run messages.RunID
		if _, err := fmt.Sscanf(lines.Text(), "run %d", &run); err != nil {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Error(lines.Text())
			}
			continue
		}
		acknowledged[run] = true
		if n--; n == 0 {
			time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
}

// checkRunIsWhole checks that a run has everything that its batch brought. Ids have no gaps,
// since batches become durable in order.
func checkRunIsWhole(t *testing.T, s persistence.Store, run messages.RunID) {
	t.Helper()
	want := crashBatch(run)
	st, err := s.Load(run)
	if err != nil {
		t.Fatal(err)
	}
	if string(st.Definition) != string(want.Create.Definition) || len(st.Records) != 1 || len(st.Sets) != 1 || len(st.Chunks) != 1 ||
		st.Summary.State != want.Summary.State {
		t.Fatalf("run %d is torn: %d bytes, %d records, %d sets, %d chunks", run, len(st.Definition), len(st.Records), len(st.Sets), len(st.Chunks))
	}
	n := 0
	if err := s.Attempts(run, 0, 10000, func(*messages.AttemptRecord) bool { n++; return true }); err != nil || n != 2 {
		t.Fatalf("run %d: %d attempts, %v", run, n, err)
	}
	if id, _, ok, err := s.LookUpKey(fmt.Sprint("key ", run)); id != run || !ok || err != nil {
		t.Fatalf("run %d: key: %d, %v, %v", run, id, ok, err)
	}
}
