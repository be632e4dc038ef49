package executor_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// newCgroupRig makes a rig whose attempts run in control groups, if the machine allows them. has
// tells that, and limits whether memory can be limited.
func newCgroupRig(t *testing.T) (r *rig, has, limits bool) {
	t.Helper()
	var log strings.Builder
	name := fmt.Sprintf("test-%d-%d", os.Getpid(), marks.Add(1))
	r = newRig(t, func(c *executor.ProcessConfig) {
		c.CgroupName, c.EnforceMemory, c.Logger = name, true, slog.New(slog.NewTextHandler(&log, nil))
	})
	r.groups = name
	t.Cleanup(func() {
		executor.RemoveCgroups(name, func(rest string) bool { return rest != "" })
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

// Where control groups are available, a kill reaches processes in other sessions.
func TestKillReachesOtherSessions(t *testing.T) {
	r, has, _ := newCgroupRig(t)
	for task := range uint32(3) { // the second and third one in the group of the first
		pid := filepath.Join(r.dir, fmt.Sprint("pid", task))
		k := r.startShell(task, "setsid sh -c 'echo $$ >"+pid+".new; mv "+pid+".new "+pid+"; exec sleep 1000' & exec sleep 1000")
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
	killMarked(t, r.mark) // where there are none
}

// The descendants of a task that ends by itself go on.
func TestDescendantsOutliveATaskThatEnds(t *testing.T) {
	r, _, _ := newCgroupRig(t)
	if rep := r.runShell("sleep 1000 & echo $!"); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	} else if _, err := os.Stat("/proc/" + strings.TrimSpace(r.readOutput(rep.Record.Stdout))); err != nil {
		t.Errorf("its child: %v", err)
	}
	r.runShell("true")
	killMarked(t, r.mark)
	r.runShell("true") // in the group that is empty now
}

// Where memory can be limited, the kernel kills a task that exceeds its limit, and the record says
// so.
func TestMemoryLimitKills(t *testing.T) {
	r, _, limits := newCgroupRig(t)
	small := func(o *executor.Order) { o.MemoryBytes = 20 << 20 }
	rec := r.runShell("head -c 100M /dev/zero | tail", small).Record
	if said := strings.Contains(rec.ExecutorLog, "out of memory: the kernel killed a process of the task, which exceeded the 20 MB"); said != limits {
		t.Errorf("limits %v: %+v", limits, rec)
	}
	rec = r.runShell("head -c 100M /dev/zero | tail | wc -c").Record // the same group without a limit
	if rec.ExecutorLog != "" || r.readOutput(rec.Stdout) != "104857600\n" {
		t.Errorf("%+v", rec)
	}
	if rec = r.runShell("exec tail -c 1 /dev/null", small).Record; rec.Result != messages.AttemptSucceeded || rec.ExecutorLog != "" {
		t.Errorf("%+v", rec)
	}
}

// After the attempt's end a survivor's writes are refused. Its file takes no memory any more, with
// control groups and without, and while a reader has the attempt's output open.
func TestSurvivorCannotPrint(t *testing.T) {
	for _, name := range []string{"without groups", "with groups", "with a reader"} {
		t.Run(name, func(t *testing.T) {
			var r *rig
			if name == "with groups" {
				r, _, _ = newCgroupRig(t)
			} else {
				r = newRig(t, nil)
			}
			file := func(name string) string { return filepath.Join(r.dir, name) }
			k := r.startShell(1, `until [ -e `+file("opened")+` ]; do sleep 0.01; done; head -c 10000000 /dev/zero; echo "begin" >&2
				setsid sh -c 'echo $$ > `+file("pid")+`; until [ -e `+file("go")+` ]; do sleep 0.01; done
					head -c 1000000000 /dev/zero; echo $? > `+file("rc.new")+`
					echo x >&2; dd if=/dev/zero of=/proc/self/fd/1 bs=1M count=5 conv=notrunc
					mv `+file("rc.new")+` `+file("rc")+`; sleep 1000; :' & # not exec: the shell's files are looked at
				until [ -s `+file("pid")+` ]; do sleep 0.01; done`)
			r.WaitStarted(k)
			kept := int64(0) // of memory
			if name == "with a reader" {
				log, err := r.OpenLog(k, messages.Stdout)
				if err != nil {
					t.Fatal(err)
				}
				defer log.Close()
				kept = 10_000_000 + 64<<10
			}
			if err := os.WriteFile(file("opened"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			rec := r.WaitFinal(k).Record
			if rec.Result != messages.AttemptSucceeded || rec.Stdout.Size != 10_000_000 || r.readOutput(rec.Stderr) != "begin\n" {
				t.Fatalf("%+v", rec)
			}
			pid := readFile(t, file("pid"))
			held := func() (size, memory int64) {
				var st syscall.Stat_t
				if err := syscall.Stat("/proc/"+pid+"/fd/1", &st); err != nil {
					t.Fatal(err)
				}
				return st.Size, st.Blocks * 512
			}
			poll(t, func() string {
				if _, memory := held(); memory > kept {
					return fmt.Sprintf("what was printed still takes %d bytes", memory)
				}
				return ""
			})
			if err := os.WriteFile(file("go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			poll(t, func() string {
				if _, err := os.Stat(file("rc")); err != nil {
					return "the survivor still prints"
				}
				return ""
			})
			if size, memory := held(); size != 10_000_000 || memory > kept || readFile(t, file("rc")) == "0" {
				t.Errorf("%d bytes of output take %d of memory; head ended with %s", size, memory, readFile(t, file("rc")))
			}
			killMarked(t, r.mark)
		})
	}
}

// A survivor keeps only its own group.
func TestSurvivorKeepsOnlyItsOwnCgroup(t *testing.T) {
	r, has, _ := newCgroupRig(t)
	if !has {
		t.Skip("no control groups can be made here")
	}
	r.runShell("true")
	before := countDescriptors(t)
	r.runShell("setsid sleep 300 & exit 0")
	for range 60 {
		var keys []messages.AttemptKey
		for range 5 {
			keys = append(keys, r.startShell(1000+uint32(marks.Add(1)), "(sleep 0.05 &)", func(o *executor.Order) { o.CPUMillis = 0 }))
		}
		for _, k := range keys {
			r.WaitFinal(k)
		}
	}
	poll(t, func() string {
		groups := cgroupsOf(t, r.groups)
		// The survivor's group and the free ones have two descriptors each.
		if after := countDescriptors(t); len(groups) > 12 || after > before+2*len(groups) {
			return fmt.Sprintf("%d groups, %d descriptors, %d before", len(groups), after, before)
		}
		return ""
	})
	killMarked(t, r.mark)
	poll(t, func() string { // the survivor's goes with it
		for _, g := range cgroupsOf(t, r.groups) {
			if text, _ := os.ReadFile(filepath.Join(g, "cgroup.events")); strings.Contains(string(text), "populated 1") {
				return g + " has members"
			}
		}
		return ""
	})
	if rec := r.runShell("true").Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}

// cgroupsOf lists the control groups of a Process with this name.
func cgroupsOf(t *testing.T, name string) (found []string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		names, err := filepath.Glob(filepath.Join(root, "caravan-"+name, "[0-9]*"))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	return found
}

// A task's memory limit includes neither its output nor what an attempt before it left behind. A
// small limit also holds after a large one.
func TestMemoryLimitExcludesOutputAndLeftovers(t *testing.T) {
	r, _, limits := newCgroupRig(t)
	if !limits {
		t.Skip("memory cannot be limited here: no memory controller is given to this process")
	}
	memory := func(mb int64) func(*executor.Order) { return func(o *executor.Order) { o.MemoryBytes = mb << 20 } }
	rec := r.runShell("head -c 60000000 /dev/zero; head -c 60000000 /dev/zero >&2; echo end", memory(32)).Record
	if rec.Result != messages.AttemptSucceeded || rec.Stdout.Size != 60_000_004 || rec.Stderr.Size != 60_000_000 || rec.ExecutorLog != "" {
		t.Errorf("printed 120 MB: %+v", rec)
	}
	shared := "/dev/shm/caravan-test-" + strconv.Itoa(os.Getpid())
	defer os.Remove(shared)
	for _, mb := range []int64{60, 90} {
		if rec = r.runShell(fmt.Sprintf("head -c %d /dev/zero > %s", (mb-20)<<20, shared), memory(mb)).Record; rec.Result != messages.AttemptSucceeded {
			t.Errorf("filled /dev/shm: %+v", rec)
		}
		if rec = r.runShell("head -c 10M /dev/zero | tail | wc -c", memory(32)).Record; rec.Result != messages.AttemptSucceeded || r.readOutput(rec.Stdout) != "10485760\n" {
			t.Errorf("after one that filled /dev/shm: %+v", rec)
		}
	}
	if rec = r.runShell("head -c 80M /dev/zero | tail", memory(32)).Record; !strings.Contains(rec.ExecutorLog, "out of memory") {
		t.Errorf("32 MB after 90: %+v", rec)
	}
}

// With a memory limit, output is the same as without one: whole, in order, readable while the task
// runs, and cut in the middle. Output of survivors after the end is dropped.
func TestOutputThroughAPipeIsTheSame(t *testing.T) {
	r, _, limits := newCgroupRig(t)
	if !limits {
		t.Skip("memory cannot be limited here: no memory controller is given to this process")
	}
	small := func(o *executor.Order) { o.MemoryBytes = 64 << 20 }
	rec := r.runShell("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo again > /dev/stderr; echo more >> /dev/stderr", small).Record
	lines := strings.Split(strings.TrimSpace(r.readOutput(rec.Stdout)), "\n")
	if len(lines) != 3000 || lines[2999] != "line 2999" || r.readOutput(rec.Stderr) != "again\nmore\n" {
		t.Errorf("%d lines: %+v", len(lines), rec)
	}
	if rec = r.runShell("head -c 200000000 /dev/zero; echo end", small).Record; rec.Stdout.Size != 200_000_004 || rec.Stdout.Head+rec.Stdout.Tail != 64<<20 {
		t.Errorf("%+v", rec)
	}
	k := r.startShell(7, "echo now; sleep 1000", small)
	r.WaitStarted(k)
	log, err := r.OpenLog(k, messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	poll(t, func() string {
		if log.Size() != 4 {
			return "nothing is to be read"
		}
		return ""
	})
	log.Close()
	r.Kill(k, 0)
	r.WaitFinal(k)
	if rec = r.runShell("setsid yes & sleep 0.1; exit 0", small).Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
	poll(t, func() string { // its pipe has no reader
		if pids := markedProcesses(r.mark); len(pids) > 0 {
			return fmt.Sprint(pids, " still print")
		}
		return ""
	})
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
