package executor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// TestWhatASurvivorPrints: after the attempt's end it is refused, and neither that nor
// what was printed before takes memory any more. With control groups and without, and
// while somebody reads what the attempt printed.
func TestWhatASurvivorPrints(t *testing.T) {
	for _, name := range []string{"without groups", "with groups", "with a reader"} {
		t.Run(name, func(t *testing.T) {
			var r *rig
			if name == "with groups" {
				r, _, _ = grouped(t)
			} else {
				r = newRig(t, nil)
			}
			file := func(name string) string { return filepath.Join(r.dir, name) }
			k := r.sh(1, `until [ -e `+file("opened")+` ]; do sleep 0.01; done; head -c 10000000 /dev/zero; echo "begin" >&2
				setsid sh -c 'echo $$ > `+file("pid")+`; until [ -e `+file("go")+` ]; do sleep 0.01; done
					head -c 1000000000 /dev/zero; echo $? > `+file("rc.new")+`
					echo x >&2; dd if=/dev/zero of=/proc/self/fd/1 bs=1M count=5 conv=notrunc
					mv `+file("rc.new")+` `+file("rc")+`; exec sleep 1000' &
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
			if rec.Result != messages.AttemptSucceeded || rec.Stdout.Size != 10_000_000 || r.text(rec.Stderr) != "begin\n" {
				t.Fatalf("%+v", rec)
			}
			pid := read(t, file("pid"))
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
			if size, memory := held(); size != 10_000_000 || memory > kept || read(t, file("rc")) == "0" {
				t.Errorf("%d bytes of output take %d of memory; head ended with %s", size, memory, read(t, file("rc")))
			}
			end(t, r.mark)
		})
	}
}

// TestGroupsAreFreed: what a task leaves behind keeps its own group, and no other one.
func TestGroupsAreFreed(t *testing.T) {
	r, has, _ := grouped(t)
	if !has {
		t.Skip("no control groups can be made here")
	}
	r.run("true")
	before := descriptors(t)
	r.run("setsid sleep 300 & exit 0")
	for range 60 {
		var keys []messages.AttemptKey
		for range 5 {
			keys = append(keys, r.sh(1000+uint32(marks.Add(1)), "(sleep 0.05 &)", func(o *executor.Order) { o.CPUMillis = 0 }))
		}
		for _, k := range keys {
			r.WaitFinal(k)
		}
	}
	poll(t, func() string {
		groups := groupsOf(t, r.groups)
		// The survivor's, and what waits for the next attempt: two descriptors each.
		if after := descriptors(t); len(groups) > 12 || after > before+2*len(groups) {
			return fmt.Sprintf("%d groups, %d descriptors, %d before", len(groups), after, before)
		}
		return ""
	})
	end(t, r.mark)
	poll(t, func() string { // the survivor's goes with it
		for _, g := range groupsOf(t, r.groups) {
			if text, _ := os.ReadFile(filepath.Join(g, "cgroup.events")); strings.Contains(string(text), "populated 1") {
				return g + " has members"
			}
		}
		return ""
	})
	if rec := r.run("true").Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}

// groupsOf lists the control groups that a Process of a name has.
func groupsOf(t *testing.T, name string) (found []string) {
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

// TestMemoryIsTheTasksOwn: what it prints is not charged to it, nor what an attempt
// before it has left behind; and a small limit holds behind a large one.
func TestMemoryIsTheTasksOwn(t *testing.T) {
	r, _, limits := grouped(t)
	if !limits {
		t.Skip("memory cannot be limited here: no memory controller is given to this process")
	}
	memory := func(mb int64) func(*executor.Order) { return func(o *executor.Order) { o.MemoryBytes = mb << 20 } }
	rec := r.run("head -c 60000000 /dev/zero; head -c 60000000 /dev/zero >&2; echo end", memory(32)).Record
	if rec.Result != messages.AttemptSucceeded || rec.Stdout.Size != 60_000_004 || rec.Stderr.Size != 60_000_000 || rec.ExecutorLog != "" {
		t.Errorf("printed 120 MB: %+v", rec)
	}
	shared := "/dev/shm/caravan-test-" + strconv.Itoa(os.Getpid())
	defer os.Remove(shared)
	for _, mb := range []int64{60, 90} {
		if rec = r.run(fmt.Sprintf("head -c %d /dev/zero > %s", (mb-20)<<20, shared), memory(mb)).Record; rec.Result != messages.AttemptSucceeded {
			t.Errorf("filled /dev/shm: %+v", rec)
		}
		if rec = r.run("head -c 10M /dev/zero | tail | wc -c", memory(32)).Record; rec.Result != messages.AttemptSucceeded || r.text(rec.Stdout) != "10485760\n" {
			t.Errorf("after one that filled /dev/shm: %+v", rec)
		}
	}
	if rec = r.run("head -c 80M /dev/zero | tail", memory(32)).Record; !strings.Contains(rec.ExecutorLog, "out of memory") {
		t.Errorf("32 MB after 90: %+v", rec)
	}
}

// TestOutputThroughAPipe: with a memory limit, output is what it is without one: whole,
// in order, readable while the task runs, cut in the middle, and the survivors' no more
// than what was there at the end.
func TestOutputThroughAPipe(t *testing.T) {
	r, _, limits := grouped(t)
	if !limits {
		t.Skip("memory cannot be limited here: no memory controller is given to this process")
	}
	small := func(o *executor.Order) { o.MemoryBytes = 64 << 20 }
	rec := r.run("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo again > /dev/stderr; echo more >> /dev/stderr", small).Record
	lines := strings.Split(strings.TrimSpace(r.text(rec.Stdout)), "\n")
	if len(lines) != 3000 || lines[2999] != "line 2999" || r.text(rec.Stderr) != "again\nmore\n" {
		t.Errorf("%d lines: %+v", len(lines), rec)
	}
	if rec = r.run("head -c 200000000 /dev/zero; echo end", small).Record; rec.Stdout.Size != 200_000_004 || rec.Stdout.Head+rec.Stdout.Tail != 64<<20 {
		t.Errorf("%+v", rec)
	}
	k := r.sh(7, "echo now; sleep 1000", small)
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
	if rec = r.run("setsid yes & sleep 0.1; exit 0", small).Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
	poll(t, func() string { // its pipe has no reader
		if pids := marked(r.mark); len(pids) > 0 {
			return fmt.Sprint(pids, " still print")
		}
		return ""
	})
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
