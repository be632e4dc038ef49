package executor_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// grouped is a rig whose attempts run in control groups, if the machine lets us make
// some; has tells that, and limits whether memory can be limited.
func grouped(t *testing.T) (r *rig, has, limits bool) {
	t.Helper()
	var log strings.Builder
	name := fmt.Sprintf("test-%d-%d", os.Getpid(), marks.Add(1))
	r = newRig(t, func(c *executor.ProcessConfig) {
		c.CgroupName, c.EnforceMemory, c.Logger = name, true, slog.New(slog.NewTextHandler(&log, nil))
	})
	r.groups = name
	t.Cleanup(func() {
		executor.RemoveCgroups(name)
		for _, pattern := range []string{"/sys/fs/cgroup/caravan-", "/sys/fs/cgroup/*/caravan-"} {
			if left, _ := filepath.Glob(pattern + name); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
	})
	has = !strings.Contains(log.String(), "process groups only")
	limits = has && !strings.Contains(log.String(), "not enforced")
	t.Logf("control groups: %v, memory limits: %v %s", has, limits, log.String())
	return r, has, limits
}

// TestKillReachesASessionOfItsOwn: where there are control groups.
func TestKillReachesASessionOfItsOwn(t *testing.T) {
	r, has, _ := grouped(t)
	for task := range uint32(3) { // the second and third one in the group of the first
		pid := filepath.Join(r.dir, fmt.Sprint("pid", task))
		k := r.sh(task, "setsid sh -c 'echo $$ >"+pid+".new; mv "+pid+".new "+pid+"; exec sleep 1000' & exec sleep 1000")
		poll(t, func() string {
			if _, err := os.Stat(pid); err != nil {
				return fmt.Sprintf("the grandchild has not begun: %+v", r.Reports(k))
			}
			return ""
		})
		r.Kill(k, time.Second)
		if rep := r.WaitFinal(k); rep.Record.Result != messages.AttemptKilled {
			t.Errorf("%+v", rep)
		}
		text, _ := os.ReadFile(pid)
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/stat")
		if gone := err != nil || strings.Contains(string(stat), ") Z "); gone != has { // nobody may have reaped it
			t.Errorf("the grandchild is gone: %v; control groups: %v", gone, has)
		}
	}
	end(t, r.mark) // where there are none
}

// TestWhatATaskLeavesBehindLives: a task that ends by itself is not its descendants' end.
func TestWhatATaskLeavesBehindLives(t *testing.T) {
	r, _, _ := grouped(t)
	if rep := r.run("sleep 1000 & echo $!"); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	} else if _, err := os.Stat("/proc/" + strings.TrimSpace(r.text(rep.Record.Stdout))); err != nil {
		t.Errorf("its child: %v", err)
	}
	r.run("true")
	end(t, r.mark)
	r.run("true") // in the group that is empty now
}

// TestMemoryLimit: what is beyond it is killed, and said; where memory can be limited.
func TestMemoryLimit(t *testing.T) {
	r, _, limits := grouped(t)
	small := func(o *executor.Order) { o.MemoryBytes = 20 << 20 }
	rec := r.run("head -c 100M /dev/zero | tail", small).Record
	if said := strings.Contains(rec.ExecutorLog, "out of memory: the kernel killed a process of the task, which exceeded the 20 MB"); said != limits {
		t.Errorf("limits %v: %+v", limits, rec)
	}
	rec = r.run("head -c 100M /dev/zero | tail | wc -c").Record // the same group without a limit
	if rec.ExecutorLog != "" || r.text(rec.Stdout) != "104857600\n" {
		t.Errorf("%+v", rec)
	}
	if rec = r.run("exec tail -c 1 /dev/null", small).Record; rec.Result != messages.AttemptSucceeded || rec.ExecutorLog != "" {
		t.Errorf("%+v", rec)
	}
}
