package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestOutputFillsTheDisk: tasks print more than the disk takes. First new runs are
// refused, then output is cut; the server does not stop, and every task ends and is
// recorded, also those that began when the disk was full.
func TestOutputFillsTheDisk(t *testing.T) {
	e2etest.DiskErrors(t)
	dir, ok := smallDisk(t)
	if !ok {
		t.Skip("no file system of a size of its own can be mounted")
	}
	s := e2etest.Start(t, e2etest.Data(filepath.Join(dir, "data")))
	const printers = 12 // 60 MiB each, on a disk of 400 MB
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"print": e2etest.Sh("head -c 62914560 /dev/urandom; echo {{N}} >&2"),
		"after": e2etest.Sh("echo after {{N}}").With("parents", []string{"print"}),
	}).With("parameters", map[string]any{"N": e2etest.Numbers(printers)}))
	s.Await(run, "COMPLETED")
	got, cut := s.Get(run), 0
	for i := range printers {
		if a := got.TaskAttempts[fmt.Sprintf("after_%d", i)]; len(a) != 1 || a[0].RC != 0 || a[0].OutputLog != fmt.Sprintf("after %d\n", i) {
			t.Errorf("after_%d: %+v", i, a)
		}
		a := got.TaskAttempts[fmt.Sprintf("print_%d", i)]
		if len(a) != 1 || a[0].RC != 0 || a[0].ErrorLog != fmt.Sprintf("%d\n", i) {
			t.Errorf("print_%d has %d attempts", i, len(a))
			continue
		}
		if strings.Contains(a[0].ExecutorLog, "disk is nearly full") {
			cut++
			if !strings.Contains(a[0].OutputLog, " bytes cut]") {
				t.Errorf("print_%d is cut without a marker: %d bytes, %.200q", i, len(a[0].OutputLog), a[0].OutputLog)
			}
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize >> 20
	t.Logf("the output of %d of %d tasks was cut, %d MiB of the disk are free", cut, printers, free)
	if cut == 0 || cut == printers || free < 64 {
		t.Errorf("%d were cut, %d MiB are free", cut, free)
	}
	// What others fill beside it is not cut.
	sleeper := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("until [ -e go ]; do sleep 0.05; done; head -c 100000 /dev/zero").Job("workDir", dir)}))
	s.AwaitTask(sleeper, "a", "RUNNING")
	remove := ballast(t, dir, 80<<20)
	defer remove()
	// What is known of the disk may be a tenth of a second old.
	e2etest.Eventually(t, "/healthz tells of the disk", func() bool {
		r, err := s.Try("GET", "/healthz", "")
		return err == nil && r.Status == 503 && strings.Contains(string(r.Body), "disk")
	})
	refused, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")})))
	if err != nil || refused.Status != 503 || refused.Header.Get("Retry-After") == "" {
		t.Errorf("a submission: %d %v %s %v", refused.Status, refused.Header, refused.Body, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Await(sleeper, "COMPLETED")
	if a := s.Get(sleeper).TaskAttempts["a"]; len(a) != 1 || !strings.Contains(a[0].ExecutorLog, "disk is nearly full") {
		t.Errorf("what ran meanwhile: %+v", a)
	}
	select {
	case <-s.Ended():
		t.Errorf("the server stopped:\n%s", s.Log())
	default:
	}
}
