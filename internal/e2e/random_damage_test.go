package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestRandomDamage damages one file of a data folder and starts the server on it, -damages times.
// SIGTERM stopped half of the folders, SIGKILL the other half. The server must either refuse to
// start and name the file, or serve each run exactly as it was or as an error that makes /healthz
// fail. It must never serve or execute altered bytes, lose a run or an attempt silently, use an ID
// again, or start an attempt twice.
func TestRandomDamage(t *testing.T) {
	t.Parallel()
	e2etest.OneByOne(t)
	rng := seededRandom(t)
	outcomes := map[string]int{}
	for i, stop := range []string{"SIGTERM", "SIGKILL"} {
		h := newHistory(t, stop)
		n := (scaled(*damagesFlag) + 1 - i) / 2
		for range n {
			h.restore(t)
			what := damageFile(t, rng, h.data, pickFile(t, rng, h.data))
			outcome := h.checkServed(t, what)
			outcomes[what.kind+" "+filepath.Dir(what.file)+": "+outcome]++
			if t.Failed() {
				t.Fatalf("%s, stopped by %s: %s", what, stop, outcome)
			}
		}
	}
	for _, k := range slices.Sorted(mapKeys(outcomes)) {
		t.Logf("%3d %s", outcomes[k], k)
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// history is a data folder with runs of every kind, and their expected state after any damage that
// the server does not report.
type history struct {
	data, pristine string            // the folder, and a copy of it as the server left it
	lines          string            // the file that tasks append their names to
	linesBefore    []byte            // its content when the server was stopped
	documents      map[uint64][]byte // GET /v1/dagrun/ID
	logs           map[string][]byte // path of a log -> its bytes
	restartable    map[uint64]string // ID -> the state that continues the run
	allowed        map[string]bool   // lines that tasks may append, without the attempt
	last           uint64            // the highest run ID
}

// noteScript is a script that appends "TASK TEXT ATTEMPT" to the file of lines.
func (h *history) noteScript(task, text string) string {
	h.allowed[task+" "+text] = true
	return `echo "$CARAVAN_TASK ` + text + ` $CARAVAN_ATTEMPT" >> ` + h.lines
}

// newHistory makes a folder and stops its server with the signal.
func newHistory(t *testing.T, stop string) *history {
	t.Helper()
	dir := t.TempDir()
	h := &history{
		data: filepath.Join(dir, "data"), pristine: filepath.Join(dir, "pristine"), lines: filepath.Join(dir, "lines"),
		documents: map[uint64][]byte{}, logs: map[string][]byte{}, restartable: map[uint64]string{}, allowed: map[string]bool{},
	}
	s := e2etest.Start(t, e2etest.Data(h.data))
	h.submitFinished(t, s)
	// A stop writes what is in memory into tables; what follows is in the commit log.
	if code, _, err := s.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v", code, err)
	}
	s = s.Restart()
	h.submitFinished(t, s)
	h.submitRestartable(t, s)
	for _, sum := range s.List("?all=1") {
		id := sum.RunID
		h.documents[id] = s.Want(200, "GET", e2etest.Path(id, ""), "").Body
		h.last = max(h.last, id)
		empty := 0
		for task := range s.Get(id).TaskAttempts {
			for _, stream := range []string{"stdout", "stderr"} {
				path := e2etest.Path(id, "/task/"+task+"/log?stream="+stream)
				r := s.Do("GET", path, "")
				if r.Status == 200 && len(r.Body) == 0 {
					empty++ // a few are enough, and each costs a read of the run
				}
				if r.Status == 200 && (len(r.Body) > 0 || empty <= 10) {
					h.logs[path] = r.Body
				}
			}
		}
	}
	if stop == "SIGTERM" {
		if code, _, err := s.Stop(e2etest.Patience); code != 0 || err != nil {
			t.Fatalf("exit code %d, %v", code, err)
		}
	} else {
		s.Kill()
	}
	if err := testenv.EndWorkers(h.data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.linesBefore, err = os.ReadFile(h.lines); err != nil {
		t.Fatal(err)
	}
	copyFolder(t, h.data, h.pristine)
	return h
}

// submitFinished adds runs that are COMPLETED: short and long outputs and definitions, expanded
// tasks, a generator, an idempotency key.
func (h *history) submitFinished(t *testing.T, s *e2etest.Server) {
	t.Helper()
	for i := range 3 {
		s.Complete(e2etest.Graph(map[string]e2etest.Task{
			"a": e2etest.Sh(h.noteScript("a", fmt.Sprint("small-", i)) + "; echo out; echo err >&2"),
			"b": e2etest.Sh(h.noteScript("b", fmt.Sprint("small-", i))).After("a"),
		}).With("tag", fmt.Sprint("small-", i)))
	}
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"long": e2etest.Sh("seq 1 40000; seq 1 30000 >&2")}))
	s.Complete(e2etest.Graph(map[string]e2etest.Task{"n": e2etest.Noop("N"), "m": e2etest.Noop("N").After("n")}).
		With("parameters", map[string]any{"N": e2etest.Numbers(60)}))
	s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"gen": e2etest.Sh(`echo '{"made":{"job":{"commandString":"echo made"}}}'`).With("isGenerator", true),
	}))
	large := map[string]e2etest.Task{}
	for i := range 400 {
		large[fmt.Sprint("listed-", i)] = e2etest.Noop("").Job("note", strings.Repeat(fmt.Sprint(i, "-"), 60))
	}
	s.Complete(e2etest.Graph(large))
	s.Await(s.Submit(e2etest.Graph(map[string]e2etest.Task{"k": e2etest.Noop("")}), "Idempotency-Key", fmt.Sprint("key-", len(h.allowed))), "COMPLETED")
}

// submitRestartable adds runs that execute commands when they are continued.
func (h *history) submitRestartable(t *testing.T, s *e2etest.Server) {
	t.Helper()
	errored := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"fails": e2etest.Sh(h.noteScript("fails", "errored")+"; exit 3").With("maxRetries", 2),
		"waits": e2etest.Sh(h.noteScript("waits", "errored")).After("fails"),
	}))
	s.Await(errored, "ERRORED")
	h.restartable[errored] = "QUEUED"
	killed := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"done":  e2etest.Sh(h.noteScript("done", "killed")),
		"sleep": e2etest.Sh(h.noteScript("sleep", "killed") + "; [ $CARAVAN_ATTEMPT -gt 1 ] || exec sleep 60").After("done"),
	}))
	s.AwaitTask(killed, "sleep", "RUNNING")
	s.Want(200, "DELETE", e2etest.Path(killed, ""), "")
	s.Await(killed, "KILLED")
	h.restartable[killed] = "QUEUED"
	gate := filepath.Join(t.TempDir(), "gate")
	paused := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"first": e2etest.Sh(h.noteScript("first", "paused") + "; until [ -e " + gate + " ]; do sleep 0.05; done"),
		"then":  e2etest.Sh(h.noteScript("then_0", "paused") + "; test -n x{{N}}").After("first"),
	}).With("parameters", map[string]any{"N": []string{"only"}}))
	s.AwaitTask(paused, "first", "RUNNING")
	s.Want(200, "PATCH", e2etest.Path(paused, "/state/PAUSED"), "")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.AwaitTask(paused, "first", "COMPLETED")
	h.restartable[paused] = "RUNNING"
}

// restore puts the content of the folder back as the server left it. The folder itself stays, so
// that it does not become a copy.
func (h *history) restore(t *testing.T) {
	t.Helper()
	inside, err := os.ReadDir(h.data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range inside {
		if err := os.RemoveAll(filepath.Join(h.data, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	copyFolder(t, h.pristine+"/.", h.data)
	if err := os.WriteFile(h.lines, h.linesBefore, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp -a %s %s: %v\n%s", from, to, err, out)
	}
}

// damage is what was done to a file.
type damage struct {
	kind, file string // the file's path within the data folder
	offset     int64
}

func (d damage) String() string { return fmt.Sprintf("%s of %s at %d", d.kind, d.file, d.offset) }

// pickFile picks a folder at random, then a file in it, so that a folder of few files counts as much
// as one of many.
func pickFile(t *testing.T, rng *rand.Rand, data string) string {
	t.Helper()
	byFolder := map[string][]string{}
	var folders []string
	err := filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		// The tables, the manifest and Badger's other files are in one folder.
		dir := filepath.Dir(path) + " " + filepath.Ext(path)
		if byFolder[dir] == nil {
			folders = append(folders, dir)
		}
		byFolder[dir] = append(byFolder[dir], path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	files := byFolder[folders[rng.IntN(len(folders))]]
	return files[rng.IntN(len(files))]
}

// damageFile flips a bit, zeroes or overwrites a range, truncates or deletes the file.
func damageFile(t *testing.T, rng *rand.Rand, data, path string) damage {
	t.Helper()
	rel, err := filepath.Rel(data, path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := damage{file: rel}
	used := len(bytes.TrimRight(text, "\x00"))
	if used == 0 || rng.IntN(8) == 0 {
		used = len(text)
	}
	if used > 0 {
		d.offset = int64(rng.IntN(used))
	}
	length := int64(1 + rng.IntN(8192))
	switch kind := rng.IntN(10); {
	case used == 0 || kind == 0:
		d.kind = "delete"
		err = os.Remove(path)
	case kind == 1:
		d.kind = "truncate"
		err = os.Truncate(path, d.offset)
	case kind <= 3:
		d.kind = "zero"
		part := text[d.offset:min(d.offset+length, int64(len(text)))]
		clear(part)
		err = os.WriteFile(path, text, 0o600)
	case kind == 4:
		d.kind = "overwrite"
		part := text[d.offset:min(d.offset+length, int64(len(text)))]
		for i := range part {
			part[i] = byte(rng.Uint32())
		}
		err = os.WriteFile(path, text, 0o600)
	default:
		d.kind = "flip"
		text[d.offset] ^= 1 << rng.IntN(8)
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// checkServed starts a server on the damaged folder and compares what it serves with the history.
// The result is "refused", "reported" or "whole".
func (h *history) checkServed(t *testing.T, d damage) string {
	t.Helper()
	s, err := e2etest.TryStart(t, e2etest.Data(h.data))
	if err != nil {
		if !strings.Contains(err.Error(), filepath.Base(d.file)) {
			t.Errorf("the refusal does not name %s: %v", d.file, err)
		}
		return "refused"
	}
	defer func() {
		s.Kill()
		if err := testenv.EndWorkers(h.data, e2etest.Patience); err != nil {
			t.Error(err)
		}
	}()
	bad := h.checkReads(t, s)
	next := s.Do("POST", "/v1/dagrun", `{"tasks":{"n":{"job":{"executor":"noop"}}}}`)
	var got struct{ RunID uint64 }
	if next.Status == 200 {
		next.Decode(t, &got)
		if got.RunID <= h.last {
			t.Errorf("the next run is %d, %d was used", got.RunID, h.last)
		}
	} else {
		bad = append(bad, fmt.Sprintf("submission: %d %s", next.Status, next.Body))
	}
	bad = append(bad, h.continueAll(t, s)...)
	h.checkLines(t)
	if len(bad) == 0 {
		return "whole"
	}
	if r := s.Do("GET", "/healthz", ""); r.Status == 200 {
		t.Errorf("/healthz is ok despite %q", bad)
	}
	return "reported"
}

// checkReads returns the reads that were refused with 5xx; any other difference fails the test.
func (h *history) checkReads(t *testing.T, s *e2etest.Server) (bad []string) {
	t.Helper()
	broken := map[uint64]bool{}
	for id, want := range h.documents {
		switch r := s.Do("GET", e2etest.Path(id, ""), ""); {
		case r.Status >= 500:
			bad, broken[id] = append(bad, fmt.Sprintf("run %d: %d %s", id, r.Status, r.Body)), true
		case r.Status == 200 && bytes.Contains(r.Body, []byte("[caravan: output not readable: ")) && h.equalExceptOutputs(r.Body, want):
			bad = append(bad, fmt.Sprintf("run %d: an output is not readable", id))
		case r.Status != 200 || !bytes.Equal(r.Body, want):
			t.Errorf("run %d: %d %.3000s\nwant %.3000s", id, r.Status, r.Body, want)
		}
	}
	for path, want := range h.logs {
		switch r, err := s.Try("GET", path, ""); {
		case err != nil: // the answer breaks off at the damage
			bad = append(bad, err.Error())
		case r.Status >= 500:
			bad = append(bad, fmt.Sprintf("%s: %d %s", path, r.Status, r.Body))
		case r.Status != 200 || !bytes.Equal(r.Body, want):
			t.Errorf("%s: %d, %d bytes that differ from the %d written", path, r.Status, len(r.Body), len(want))
		}
	}
	if r := s.Do("GET", "/v1/dagruns?all=1", ""); r.Status != 200 {
		bad = append(bad, fmt.Sprintf("list: %d %s", r.Status, r.Body))
	} else {
		var list []e2etest.Summary
		r.Decode(t, &list)
		there := map[uint64]bool{}
		for _, sum := range list {
			there[sum.RunID] = true
		}
		for id := range h.documents {
			if !there[id] && !broken[id] {
				t.Errorf("run %d is missing in the list", id)
			}
		}
	}
	return bad
}

// equalExceptOutputs reports whether two documents are equal except for the outputs of attempts.
func (h *history) equalExceptOutputs(got, want []byte) bool {
	var g, w e2etest.Run
	if json.Unmarshal(got, &g) != nil || json.Unmarshal(want, &w) != nil {
		return false
	}
	for _, attempts := range []map[string][]e2etest.Attempt{g.TaskAttempts, w.TaskAttempts} {
		for _, list := range attempts {
			for i := range list {
				list[i].OutputLog, list[i].ErrorLog = "", ""
			}
		}
	}
	return reflect.DeepEqual(g, w)
}

// continueAll continues the runs that can be continued and waits until they stand still.
func (h *history) continueAll(t *testing.T, s *e2etest.Server) (bad []string) {
	t.Helper()
	for id, state := range h.restartable {
		if r := s.Do("PATCH", e2etest.Path(id, "/state/"+state), ""); r.Status >= 500 {
			bad = append(bad, fmt.Sprintf("restart of run %d: %d %s", id, r.Status, r.Body))
			continue
		} else if r.Status != 200 {
			t.Errorf("restart of run %d: %d %s", id, r.Status, r.Body)
			continue
		}
		var last e2etest.Response
		ok := testenv.Poll(2*e2etest.Patience, func() bool {
			var got struct{ State string }
			last = s.Do("GET", e2etest.Path(id, "/state"), "")
			return last.Status >= 500 || json.Unmarshal(last.Body, &got) == nil && e2etest.Final(got.State)
		})
		switch {
		case !ok:
			t.Errorf("run %d does not end: %s", id, last.Body)
		case last.Status >= 500:
			bad = append(bad, fmt.Sprintf("run %d: %d %s", id, last.Status, last.Body))
		}
	}
	return bad
}

// checkLines: only submitted commands ran, and each attempt once.
func (h *history) checkLines(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(h.lines)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) != 3 || !h.allowed[f[0]+" "+f[1]] {
			t.Errorf("a command that was not submitted ran: %q", l)
			continue
		}
		count[l]++
		// The small runs were submitted twice, before and after the first stop.
		if limit := map[bool]int{true: 2, false: 1}[strings.HasPrefix(f[1], "small-")]; count[l] > limit {
			t.Errorf("%q ran %d times", l, count[l])
		}
	}
}
