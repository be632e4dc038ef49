package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// TestCutJournalIsIncomplete cuts a journal at every byte: it is never taken for a complete one, and
// names at most the attempts that it named before.
func TestCutJournalIsIncomplete(t *testing.T) {
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

// TestDamagedJournalKeepsItsOtherRecords flips each bit. Damage before the last record is told from
// a torn end, with its offset, and all records after it still count.
func TestDamagedJournalKeepsItsOtherRecords(t *testing.T) {
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

// TestCheckJournalFindsDamage accepts an intact journal. A changed, cut or missing one is an error
// that names the file.
func TestCheckJournalFindsDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, journalFileName)
	whole := sample("b", 1)
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(whole)
	if err := CheckJournal(dir); err != nil {
		t.Errorf("a whole one: %v", err)
	}
	damaged := func(what string) {
		t.Helper()
		var damage *JournalError
		if err := CheckJournal(dir); !errors.As(err, &damage) || damage.File != path || damage.Fault == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range whole {
		put(whole[:i])
		damaged("cut")
		changed := append([]byte(nil), whole...)
		changed[i] ^= 4
		put(changed)
		damaged("changed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	damaged("missing")
	if err := CheckJournal(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a worker that is gone: %v", err)
	}
}

// FuzzParseJournal parses any bytes. Every attempt that is found has a report.
func FuzzParseJournal(f *testing.F) {
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
