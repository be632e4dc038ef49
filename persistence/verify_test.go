package persistence_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// look is what one look at the tables came to.
type look struct {
	whole  bool
	report *badgerguard.Report
	err    error
}

// verifiedStore is a store whose looks at its tables the test orders.
type verifiedStore struct {
	*persistence.RunStore
	dir   string
	ticks chan time.Time
	looks chan look
	reg   *prometheus.Registry
	log   *logBuffer
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const lookPatience = time.Minute

// keptTables configures a store on a small disk whose tables stay: a compaction by itself would
// merge them, and would delete one that the test has damaged.
func keptTables(dir string) persistence.Config {
	return persistence.WithoutCompaction(persistence.WithSmallMemtables(persistence.Config{Dir: dir}))
}

func openVerified(t *testing.T, dir string, l persistence.VerifierSchedule) *verifiedStore {
	t.Helper()
	k := &verifiedStore{dir: dir, ticks: make(chan time.Time), looks: make(chan look, 100), reg: prometheus.NewRegistry(), log: &logBuffer{}}
	l.Ticks = k.ticks
	if l.Wait == nil {
		l.Wait = func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }
	}
	l.Looked = func(whole bool, report *badgerguard.Report, err error) { k.looks <- look{whole, report, err} }
	c := keptTables(dir)
	c.Registerer, c.Logger = k.reg, slog.New(slog.NewTextHandler(k.log, nil))
	s, err := persistence.OpenStore(persistence.WithVerifierSchedule(c, l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	k.RunStore = s
	return k
}

// tick has the store look, as if after has passed since it was opened.
func (k *verifiedStore) tick(t *testing.T, after time.Duration) {
	t.Helper()
	select {
	case k.ticks <- time.Now().Add(after):
	case <-time.After(lookPatience):
		t.Fatal("the store does not take the tick")
	}
}

func (k *verifiedStore) await(t *testing.T) look {
	t.Helper()
	select {
	case l := <-k.looks:
		return l
	case <-time.After(lookPatience):
		t.Fatal("the look does not end")
		return look{}
	}
}

// look orders a look and waits for its end.
func (k *verifiedStore) look(t *testing.T, after time.Duration) look {
	t.Helper()
	k.tick(t, after)
	return k.await(t)
}

func (k *verifiedStore) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := k.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// noisyDefinition is a definition that compression leaves as it is, in a block of its own.
func noisyDefinition(run messages.RunID) string { return string(incompressibleBytes(run, 30<<10)) }

// makeTables makes a folder with n tables, in which run i has its definition in the i-th.
func makeTables(t *testing.T, dir string, n int) {
	t.Helper()
	for i := range n {
		s, err := persistence.OpenStore(keptTables(dir))
		if err != nil {
			t.Fatal(err)
		}
		run := messages.RunID(i + 1)
		journaltest.MustAppend(t, s, journaltest.NewRun(run, "", noisyDefinition(run)))
		// Between it and the rows that an open reads, and may keep in memory, lies another block.
		journaltest.MustAppend(t, s, journaltest.NewRun(500+run, "", noisyDefinition(500+run)))
		// The last commit is applied again by the next open.
		journaltest.MustAppend(t, s, journaltest.NewRun(1000+run, "", "spec"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// flipTableBit changes one bit of a run's definition in its table, and returns the table's path.
func flipTableBit(t *testing.T, dir string, run messages.RunID) (path string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(b, []byte(noisyDefinition(run)[5000:5064]))
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{b[at] ^ 1}, int64(at))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatalf("the definition of run %d is in none of %d tables", run, len(paths))
	return ""
}

const (
	damageTotal  = "caravan_storage_damage_total"
	verifiedTime = "caravan_storage_verified_timestamp_seconds"
)

// TestRottenTableIsFoundInTheBackground: a block that rots while the store is open is found by the
// pass that comes once a day, and named with its file. Its run is an error that names the
// file; the others are served, commits go on, and the next open refuses the folder.
func TestRottenTableIsFoundInTheBackground(t *testing.T) {
	dir := t.TempDir()
	makeTables(t, dir, 3)
	s := openVerified(t, dir, persistence.VerifierSchedule{})
	if l := s.look(t, time.Minute); l.err != nil || l.whole || l.report.Tables > 1 {
		t.Fatalf("a look at what is new: %+v", l)
	}
	path := flipTableBit(t, dir, 2)
	if l := s.look(t, 2*time.Minute); l.err != nil || s.Damaged() != nil {
		t.Fatalf("a look at what is new read all: %+v, %v", l, s.Damaged())
	}
	l := s.look(t, persistence.VerifyEvery+time.Hour)
	if l.err != nil || !l.whole || len(l.report.Damage) != 1 {
		t.Fatalf("the pass: %+v", l)
	}
	for what, text := range map[string]string{"the log": s.log.String(), "the health": s.Damaged().Error()} {
		if !strings.Contains(text, path) || !strings.Contains(text, "at offset") || !strings.Contains(text, "block ") {
			t.Errorf("%s names neither file nor block: %s", what, text)
		}
	}
	if n := s.metric(t, damageTotal); n != 1 {
		t.Errorf("%s is %v", damageTotal, n)
	}
	if _, err := s.Load(2); err == nil || !strings.Contains(err.Error(), "run 2") || !strings.Contains(err.Error(), path) {
		t.Errorf("the run that is hit: %v", err)
	}
	for _, run := range []messages.RunID{1, 3} {
		st, err := s.Load(run)
		if err != nil || string(st.Definition) != noisyDefinition(run) {
			t.Errorf("run %d: %v", run, err)
		}
	}
	journaltest.MustAppend(t, s, journaltest.NewRun(4, "", "spec"))
	if l := s.look(t, persistence.VerifyEvery+2*time.Hour); l.err != nil { // new tables are written down all the same
		t.Error(l.err)
	}
	if n := strings.Count(s.log.String(), "stored data is damaged"); n > 2 { // the file, and the run
		t.Errorf("logged %d times: %s", n, s.log)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: dir}, "damaged", path)
}

// TestDamagedRowStartsAPass: a row that cannot be read has the next look find the file.
func TestDamagedRowStartsAPass(t *testing.T) {
	dir := t.TempDir()
	makeTables(t, dir, 2)
	s := openVerified(t, dir, persistence.VerifierSchedule{})
	path := flipTableBit(t, dir, 1)
	if _, err := s.Load(1); err == nil || !strings.Contains(err.Error(), "run 1") {
		t.Fatalf("the run that is hit: %v", err)
	}
	if l := s.look(t, time.Minute); !l.whole || l.err != nil {
		t.Fatalf("no pass: %+v", l)
	}
	if err := s.Damaged(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("the health: %v", err)
	}
}

// TestWholeFolderIsVerifiedOnceADay: a pass without a finding moves the time of the last one.
func TestWholeFolderIsVerifiedOnceADay(t *testing.T) {
	dir := t.TempDir()
	makeTables(t, dir, 4)
	var asked time.Duration
	s := openVerified(t, dir, persistence.VerifierSchedule{Bytes: 1, Wait: func(ctx context.Context, d time.Duration) error {
		asked += d
		return context.Cause(ctx)
	}})
	s.look(t, time.Minute)
	opened := s.metric(t, verifiedTime)
	asked = 0
	passes, read, looks := 0, int64(0), 0
	for at := persistence.VerifyEvery + time.Minute; at < 2*persistence.VerifyEvery; at += time.Hour {
		before := asked
		l := s.look(t, at)
		if l.err != nil || len(l.report.Damage) > 0 {
			t.Fatalf("%+v", l)
		}
		if asked > before {
			looks++
		}
		read += l.report.Bytes
		if l.whole {
			passes++
		}
	}
	tablesThere, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	if passes != 1 || looks != len(tablesThere) {
		t.Errorf("%d passes in a day, over %d looks for %d tables", passes, looks, len(tablesThere))
	}
	if least := time.Duration(read * int64(time.Second) / persistence.VerifyRate); asked+time.Millisecond < least {
		t.Errorf("%d bytes were read within %v, want %v or more", read, asked, least)
	}
	if s.metric(t, verifiedTime) <= opened || !strings.Contains(s.log.String(), "all tables verified") {
		t.Errorf("the pass is not told: %s", s.log)
	}
}

// TestCompactionDuringAPass: tables that Badger deletes while they are read are passed over.
func TestCompactionDuringAPass(t *testing.T) {
	for _, after := range []int{0, 1, 3} { // windows that were read when they go
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			compactDuringPass(t, after)
		})
	}
}

// compactDuringPass has tables compacted when a pass has read some windows, and checks the pass.
func compactDuringPass(t *testing.T, after int) {
	t.Helper()
	dir := t.TempDir()
	makeTables(t, dir, 5)
	var s *verifiedStore
	n, compact := 0, false
	s = openVerified(t, dir, persistence.VerifierSchedule{Wait: func(ctx context.Context, _ time.Duration) error {
		if n++; compact && n > after {
			compact = false
			if err := persistence.CompactAll(s.RunStore); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}})
	s.look(t, time.Minute)
	before := fileSizes(t, dir)
	n, compact = 0, true
	l := s.look(t, persistence.VerifyEvery+time.Minute)
	if l.err != nil || !l.whole || len(l.report.Damage) > 0 || s.Damaged() != nil {
		t.Errorf("%+v: %v", l, s.Damaged())
	}
	gone := 0
	for name := range before {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) && strings.HasSuffix(name, ".sst") {
			gone++
		}
	}
	if compact || gone == 0 {
		t.Errorf("%d tables are gone after %d windows", gone, n)
	}
}

// TestPassEndsWithTheStore: commits do not wait for a pass, and closing the store ends it.
func TestPassEndsWithTheStore(t *testing.T) {
	dir := t.TempDir()
	makeTables(t, dir, 2)
	reading := make(chan struct{})
	var once sync.Once
	s := openVerified(t, dir, persistence.VerifierSchedule{Wait: func(ctx context.Context, _ time.Duration) error {
		once.Do(func() { close(reading) })
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	s.tick(t, persistence.VerifyEvery+time.Minute)
	<-reading
	for run := range messages.RunID(20) {
		journaltest.MustAppend(t, s, journaltest.NewRun(10+run, "", "spec"))
		if _, err := s.Load(10 + run); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l := s.await(t); !errors.Is(l.err, context.Canceled) {
		t.Errorf("the pass: %+v", l)
	}
	if text := s.log.String(); strings.Contains(text, "not verified") {
		t.Errorf("the log: %s", text)
	}
}
