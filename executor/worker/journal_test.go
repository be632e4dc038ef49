package worker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// writeJournal encodes a journal with a header and what add adds; it ends with a tail.
func writeJournal(header *workerpb.JournalHeader, add func(*recordBuffer)) []byte {
	var records recordBuffer
	records.add(&workerpb.JournalRecord{Header: header})
	add(&records)
	records.addTail()
	return records.bytes
}

// sample is a journal of three attempts: one ended, one running, one being forked.
func sample(boot string, pid int) []byte {
	header := &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(pid), StartTicks: 1}
	return writeJournal(header, func(b *recordBuffer) {
		b.addIntent(key(0), 5)
		b.addIntent(key(1), 5)
		b.addIntent(key(2), 5)
		b.addForked(key(0), 1<<22, 6)
		b.addForked(key(1), 1<<22+1, 6)
		b.addFinished(workerpb.AppendFinished(nil, &executor.Report{Key: key(0), Kind: executor.Finished, At: 7,
			Record: messages.AttemptRecord{Task: 0, Attempt: 1, Start: 6, Stop: 7, ExecutorLog: "kept"}}))
	})
}

// offsets are where the records of a journal begin.
func offsets(b []byte) (at []int) {
	for rest := b; len(rest) > 0; {
		at = append(at, len(b)-len(rest))
		var ok bool
		if _, _, rest, ok = cutRecord(rest); !ok {
			panic("no journal")
		}
	}
	return at
}

// TestCutJournal cuts a journal at every byte: never is it taken for a whole one, and it
// says no more than before.
func TestCutJournal(t *testing.T) {
	whole := sample("b", 1)
	all := parseJournal(whole)
	if !all.complete || all.fault != "" || len(all.keys) != 3 {
		t.Fatalf("%+v", all)
	}
	last := 0
	for n := range whole {
		p := parseJournal(whole[:n])
		if len(p.keys) < last {
			t.Fatalf("%d bytes: %d attempts, fewer than before", n, len(p.keys))
		}
		last = len(p.keys)
		if p.complete || p.fault == "" {
			t.Fatalf("cut after %d bytes and taken for whole: %+v", n, p)
		}
		if strings.Contains(p.fault, "intact records follow") {
			t.Fatalf("cut after %d bytes: %s", n, p.fault)
		}
	}
}

// TestDamagedJournal flips each bit: damage before the last record is told from a torn
// end, with its offset, and all that stands behind it counts still.
func TestDamagedJournal(t *testing.T) {
	whole := sample("b", 1)
	begins := offsets(whole)
	tail := begins[len(begins)-1]
	for i := range whole {
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << bit
			p := parseJournal(bad)
			record := 0
			for record+1 < len(begins) && begins[record+1] <= i {
				record++
			}
			want := fmt.Sprintf("record %d at offset %d is damaged, and intact records follow at offset %d", record, begins[record], begins[min(record+1, len(begins)-1)])
			if i >= tail {
				want = fmt.Sprintf("the end is torn: %d bytes at offset %d are not a record", len(whole)-tail, tail)
			}
			if p.complete || p.fault != want {
				t.Fatalf("bit %d of byte %d: %q, want %q", bit, i, p.fault, want)
			}
			if len(p.keys) != 3 && record != 3 { // the third attempt has one record only
				t.Fatalf("bit %d of byte %d: %d attempts", bit, i, len(p.keys))
			}
			if ended := p.attempts[key(0)] != nil && p.attempts[key(0)].end != nil; ended != (record != 6) {
				t.Fatalf("bit %d of byte %d: end known %v", bit, i, ended)
			}
		}
	}
	for name, b := range map[string][]byte{
		"the file is empty":       {},
		"the end is torn":         make([]byte, 500),
		"it was cut off":          whole[:tail],
		"bytes after the last":    append(bytes.Clone(whole), "more"...),
		"is damaged, and intact":  append(make([]byte, 40), whole[begins[1]:]...),
		"record 0 at offset 0 is": whole[begins[1]:],
	} {
		if p := parseJournal(b); p.complete || !strings.Contains(p.fault, name) && !strings.HasPrefix(name, "record 0") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(sample("b", 1))
	f.Add(sample("b", 1)[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		p := parseJournal(b)
		for _, k := range p.keys {
			if _, err := p.reportOf(k, false); err != nil {
				t.Error(err)
			}
		}
	})
}

func folder(t *testing.T, journal []byte) *Folder {
	t.Helper()
	f, l, err := CreateFolder(t.TempDir(), Settings{DataFolderID: "data"})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(f.Release)
	if journal != nil {
		if err := os.WriteFile(filepath.Join(f.Path, journalFileName), journal, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// dead is a worker that left f and nothing else.
func dead(f *Folder) DeadWorker { return DeadWorker{Path: f.Path, Folder: f, DataFolderID: "data"} }

func TestEstate(t *testing.T) {
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		journal []byte
		certain bool
		lost    string // of the two that had not ended
		ends    int
	}{
		{"none", nil, false, "", 0},
		{"torn header", sample(boot, 1)[:10], false, "", 0},
		{"cut between records", sample(boot, 1<<22+5)[:offsets(sample(boot, 1<<22+5))[7]], false, "lost: its worker (pid 4194309) died", 3},
		{"this boot", sample(boot, 1<<22+5), true, "lost: its worker (pid 4194309) died", 3},
		{"boot before", sample("other", os.Getpid()), false, "lost: the machine was restarted", 3},
	} {
		e, err := RecoverDeadWorker(context.Background(), dead(folder(t, c.journal)), 0, quiet())
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if e.Complete != c.certain || len(e.Ends) != c.ends {
			t.Errorf("%s: %+v", c.name, e)
		}
		for i, rep := range e.Ends {
			want, result := c.lost, messages.AttemptLost
			if i == 0 {
				want, result = "kept", messages.AttemptSucceeded
			}
			if rep.Key != key(uint32(i)) || rep.Record.ExecutorLog != want || rep.Record.Result != result {
				t.Errorf("%s: %+v", c.name, rep)
			}
		}
	}
	f := folder(t, nil)
	os.Mkdir(filepath.Join(f.Path, journalFileName), 0o700)
	if _, err := RecoverDeadWorker(context.Background(), dead(f), 0, quiet()); err == nil {
		t.Error("a journal that cannot be read")
	}
}

// TestLeftovers has a shell play the dead worker: a session with processes of attempts
// that ended and of some that did not.
func TestLeftovers(t *testing.T) {
	f := folder(t, nil)
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := strings.NewReplacer("MARK", MarkVariable+"="+MarkValue("data", f.Name()), "DIR", dir, "TEST", fmt.Sprint(os.Getpid())).Replace(`
		MARK/1.0.1 sh -c 'echo $$ >DIR/ended; exec sleep 1000' &
		MARK/1.1.1 sh -c 'trap "" TERM; echo $$ >DIR/stubborn; while kill -0 TEST; do sleep 1000; done' &
		MARK/1.1.1 setsid sh -c 'echo $$ >DIR/left; exec sleep 1000' &
		env -i sh -c 'echo $$ >DIR/bare; exec sleep 1000' &
		MARK/1.9.1 sh -c 'echo $$ >DIR/stranger; exec sleep 1000' &
		MARK sh -c 'echo $$ >DIR/forked; exec sleep 1000' &
		exec sleep 1000`)
	before := sinceBoot()
	cmd := exec.Command("sh", "-mc", script) // each in a group of its own, as a worker forks
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	session := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		list, _ := listProcesses()
		for _, q := range list {
			if _, has := findMark(readEnvironment(q.pid), MarkValue("data", f.Name())); has || q.session == session {
				q.signal(unix.SIGKILL)
			}
		}
	})
	own, err := readProcess(session)
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for _, name := range []string{"ended", "stubborn", "left", "bare", "stranger", "forked"} {
		poll(t, name, func() bool {
			text, _ := os.ReadFile(filepath.Join(dir, name))
			if n := strings.TrimSpace(string(text)); strings.HasSuffix(string(text), "\n") {
				pids[name] = atoi(n)
			}
			return pids[name] > 0
		})
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	header := &workerpb.JournalHeader{Format: journalFormat, BootId: boot, Pid: int64(session), StartTicks: own.ticks,
		Mark: []byte(MarkValue("data", f.Name()))}
	j := writeJournal(header, func(b *recordBuffer) {
		b.addIntent(key(0), before)
		b.addIntent(key(1), before)
		b.addIntent(key(2), before)
		b.addForked(key(0), pids["ended"], sinceBoot())
		b.addForked(key(1), pids["stubborn"], sinceBoot())
		b.addFinished(workerpb.AppendFinished(nil, &executor.Report{Key: key(0)}))
	})
	if err := os.WriteFile(filepath.Join(f.Path, journalFileName), j, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := RecoverDeadWorker(ctx, dead(f), time.Hour, quiet()); err != context.Canceled {
		t.Errorf("interrupted: %v", err)
	}
	e, err := RecoverDeadWorker(context.Background(), dead(f), 50*time.Millisecond, quiet())
	if err != nil || len(e.Ends) != 3 {
		t.Fatalf("%+v, %v", e, err)
	}
	for name, want := range map[string]bool{
		"ended":    true,  // a background child of a task that had ended
		"stranger": true,  // of an attempt that this journal does not know
		"stubborn": false, // by its mark and by its group
		"left":     false, // by its mark, out of the session
		"bare":     false, // by its session, forked after the intent of one whose process is not known
		"forked":   false, // by the worker's own mark: it had not come to its exec
	} {
		p, err := readProcess(pids[name])
		if lives := err == nil && !p.dead; lives != want {
			t.Errorf("%s lives: %v, want %v", name, lives, want)
		}
	}
}

func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}

func TestMarks(t *testing.T) {
	own := taskMark("w-1", messages.AttemptKey{Run: 1 << 40, Task: 7, Attempt: 2})
	for env, want := range map[string]*messages.AttemptKey{
		"A=1\x00" + own + "\x00":       {Run: 1 << 40, Task: 7, Attempt: 2},
		"CARAVAN_WORKER=w-1\x00B=2":    nil,
		"CARAVAN_WORKER=w-1\x00" + own: nil,
	} {
		k, has := findMark([]byte(env), "w-1")
		if !has || (k == nil) != (want == nil) || k != nil && *k != *want {
			t.Errorf("%q: %v, %v", env, k, has)
		}
	}
	for _, env := range []string{"", "A=1", "CARAVAN_WORKER=w-12", "CARAVAN_WORKER=w-1/1.2", "CARAVAN_WORKER=w-1/1.2.3x", "X" + own} {
		if k, has := findMark([]byte(env), "w-1"); has {
			t.Errorf("%q: %v", env, k)
		}
	}
}

func TestParseProcess(t *testing.T) {
	line := "42 (a) (b) S 1 43 44 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0"
	if p, ok := parseStat([]byte(line)); !ok || p != (process{pid: 42, group: 43, session: 44, ticks: 99}) {
		t.Errorf("%+v %v", p, ok)
	}
	if p, ok := parseStat([]byte(strings.Replace(line, " S ", " Z ", 1))); !ok || !p.dead {
		t.Errorf("%+v %v", p, ok)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2", strings.Replace(line, "43", "x", 1), strings.Replace(line, "42", "x", 1)} {
		if p, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	if _, err := readProcess(1 << 30); err == nil {
		t.Error("a process that there is not")
	}
}

func TestFolders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/[x]*/", 20))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, l, err := CreateFolder(dir, Settings{Version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if paths, err := ListFolders(dir); err != nil || len(paths) != 1 || paths[0] != f.Path {
		t.Errorf("%q, %v", paths, err)
	}
	st, err := os.Stat(filepath.Join(f.Path, socketFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if st, err := os.Stat(f.Path); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	c, err := Dial(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := LockFolder(f.Path); err == nil || !strings.Contains(err.Error(), ErrLocked.Error()) {
		t.Errorf("taken: %v", err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := LockFolder(f.Path); !isMissing(err) {
		t.Errorf("a folder that is gone: %v", err)
	}
	if _, err := Dial(f.Path); !isMissing(err) {
		t.Errorf("a folder that is gone: %v", err)
	}
	if checkUser(1, 2) == nil || checkUser(2, 2) != nil {
		t.Error("users")
	}
}
