package remote

import (
	"bytes"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/executor/procfs"
)

// TestHungWorkerIsNamed names the process of a worker that does not answer, in the log and in
// Healthy, also when the worker has never told this server its number. Process 0 is never named.
func TestHungWorkerIsNamed(t *testing.T) {
	found, err := procfs.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own := found.Identity
	reused := own
	reused.Ticks++ // another process had this number
	pid := strconv.Itoa(own.PID)
	for _, c := range []struct {
		process     procfs.Identity
		said        int
		log, health string
	}{
		{own, 0, "pid=" + pid, "(pid " + pid + ")"},
		{own, 7, "pid=" + pid, "(pid " + pid + ")"},
		{procfs.Identity{}, 7, "pid=7", "(pid 7)"},
		{reused, 0, "", "(pid not known)"},
		{procfs.Identity{}, 0, "", "(pid not known)"},
	} {
		var out bytes.Buffer
		r := &Remote{log: slog.New(slog.NewTextHandler(&out, nil))}
		p := newPeer(r, t.TempDir())
		r.peers = []*peer{p}
		p.process, p.pid, p.silentBeats = c.process, c.said, unresponsiveBeats-1
		p.checkHeartbeat()
		line := out.String()
		if !strings.Contains(line, "does not answer") || !strings.Contains(line, c.log) || c.log == "" && strings.Contains(line, "pid=") {
			t.Errorf("%+v: %s", c, line)
		}
		if err := r.Healthy(); err == nil || !strings.Contains(err.Error(), c.health) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
