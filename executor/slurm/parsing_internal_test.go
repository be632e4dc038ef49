package slurm

import (
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/executor"
)

// squeue --json is read in the forms of versions 22.05 and 24.05.
func TestParseJSONOfSlurmVersions(t *testing.T) {
	const older = `{"meta": {}, "errors": [], "jobs": [
		{"name": "a.id1.x", "array_job_id": 7, "array_task_id": 0, "array_task_string": "", "job_state": "FAILED", "exit_code": 768, "state_reason": "NonZeroExitCode", "batch_host": "n1"},
		{"name": "a.id1.x", "array_job_id": 7, "array_task_id": 1, "job_state": "COMPLETING", "exit_code": 9, "state_reason": "None", "batch_host": "n1"},
		{"name": "a.id1.x", "array_job_id": 7, "array_task_id": null, "array_task_string": "2-9", "job_state": "PENDING", "exit_code": 0, "state_reason": "Resources", "batch_host": ""},
		{"name": "a.id2.x", "array_job_id": 8, "array_task_id": 0, "job_state": "RUNNING", "exit_code": 0}]}`
	const newer = `{"jobs": [
		{"name": "a.id1.x", "array_job_id": {"set": true, "infinite": false, "number": 7}, "array_task_id": {"set": true, "infinite": false, "number": 0}, "job_state": ["FAILED"],
			"exit_code": {"status": ["ERROR"], "return_code": {"set": true, "infinite": false, "number": 3}, "signal": {"id": {"set": false, "infinite": false, "number": 0}, "name": ""}}, "state_reason": "NonZeroExitCode", "batch_host": "n1"},
		{"name": "a.id1.x", "array_job_id": {"set": true, "number": 7}, "array_task_id": {"set": true, "number": 1}, "job_state": ["CANCELLED", "COMPLETING"],
			"exit_code": {"return_code": {"set": false, "number": 0}, "signal": {"id": {"set": true, "number": 9}, "name": "Killed"}}, "batch_host": "n1"},
		{"name": "a.id1.x", "array_job_id": {"set": true, "number": 7}, "array_task_id": {"set": false, "infinite": false, "number": 0}, "job_state": ["PENDING"], "exit_code": {"return_code": {"set": false}}}]}`
	const text = "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=a.id1.x UserId=root(0) JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 BatchHost=n1 NumNodes=1\n" +
		"JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=a.id1.x JobState=COMPLETING Reason=None ExitCode=0:9 BatchHost=n1\n" +
		"JobId=7 ArrayJobId=7 ArrayTaskId=2-9 JobName=a.id1.x JobState=PENDING Reason=Resources ExitCode=0:0\n"
	for version, doc := range map[string]string{"22.05": older, "24.05": newer, "text": text} {
		var s snapshot
		if version == "text" {
			s = parseText([]byte(doc), "id1")
		} else {
			var err error
			if s, err = parseJSON([]byte(doc), "id1"); err != nil {
				t.Fatal(err)
			}
		}
		if len(s) != 1 {
			t.Errorf("%s: %d names", version, len(s))
		}
		failed, completing, waits := s.find("a.id1.x", 0), s.find("a.id1.x", 1), s.find("a.id1.x", 5)
		if failed == nil || !failed.hasEnded() || failed.exit.ExitStatus() != 3 || failed.node != "n1" || failed.id(0) != "7_0" {
			t.Errorf("%s: %+v", version, failed)
		}
		if completing == nil || completing.hasEnded() || completing.pending() || completing.exit.Signal() != syscall.SIGKILL {
			t.Errorf("%s: %+v", version, completing)
		}
		if waits == nil || !waits.pending() || waits.id(5) != "7_5" {
			t.Errorf("%s: %+v", version, waits)
		}
		if s.find("b.id1.x", 0) != nil {
			t.Errorf("%s: a job of another name", version)
		}
	}
	if _, err := parseJSON([]byte("slurm says no"), "id1"); err == nil {
		t.Error("text was taken for JSON")
	}
}

// Tasks can write to the files of their attempt's folder. Only the beginning of a long file is read
// and counts.
func TestNotesAreReadWithABound(t *testing.T) {
	f := folder(t.TempDir())
	for name, text := range map[string]string{"begun": "7 node1\n", "end": "3\n", "job": "name 4\n", "verdict": "{}"} {
		if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f.path(name), 32<<20); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if b, ok := f.readStart(); !ok || b.job != "7" {
		t.Errorf("begun: %v, %+v", ok, b)
	}
	if e, ok := f.readEnd(); !ok || e.rc != 3 {
		t.Errorf("end: %v, %+v", ok, e)
	}
	f.readJob()
	s := &Slurm{cfg: Config{CommonConfig: executor.CommonConfig{InlineMax: 4 << 10}}}
	if _, ok := f.readReport(s.maxReportBytes()); ok {
		t.Error("a verdict with 32 MiB of zeros counts")
	}
	if tail, err := readFileAt(f.path("end"), -10, 10); err != nil || len(tail) != 10 {
		t.Errorf("its last bytes: %q, %v", tail, err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes were read or copied", n)
	}
	short := f.path("short")
	if err := os.WriteFile(short, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tail, err := readFileAt(short, -10, 10); err != nil || string(tail) != "abc" {
		t.Errorf("all of a short file: %q, %v", tail, err)
	}
}
