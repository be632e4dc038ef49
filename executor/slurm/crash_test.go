package slurm_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/internal/outputs"
)

func itoa(n int) string { return strconv.Itoa(n) }

// crashTasks is how many attempts a server of TestCrash orders.
const crashTasks = 12

func crashOrder(data string, task uint32) executor.Order {
	return executor.Order{Key: key(task), Name: fmt.Sprint("t_", task), Shell: fmt.Sprintf(`echo %d >> "$DATA/starts"; sleep 0.1`, task),
		UseShell: true, CPUMillis: 1000, Environment: []string{"DATA=" + data}, Dir: data}
}

// crashServer orders all tasks, as a server does, and is killed while it does. A server
// that is started again says Resume.
func crashServer(data string, again bool) int {
	store, err := outputs.Open(filepath.Join(data, "output"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := slurm.New(slurm.Config{Dir: filepath.Join(data, "slurm"), Outputs: store, Sink: func(...executor.Report) {},
		Poll: 20 * time.Millisecond, Gather: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("open")
	for task := range uint32(crashTasks) {
		o := crashOrder(data, task)
		o.Resume = again
		s.Start(o)
	}
	select {}
}

// TestCrash kills a server at random moments, again and again: in the end every attempt
// has been started exactly once.
func TestCrash(t *testing.T) {
	const rounds, kills = 3, 4
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(round, 7))
		g := newRig(t)
		g.cluster.SetSlots(4)
		for kill := range kills {
			cmd := exec.Command(self, "server", g.data, strconv.FormatBool(kill > 0))
			cmd.Env = append(os.Environ(), g.cluster.Environment()...)
			cmd.Stderr = g.log
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 16)); err != nil {
				t.Fatalf("the server does not open: %v\n%s", err, g.log)
			}
			after := time.NewTimer(time.Duration(rng.IntN(300)) * time.Millisecond)
			<-after.C
			_ = cmd.Process.Signal(unix.SIGKILL)
			_ = cmd.Wait() // it was killed
		}
		rec := executortest.NewRecorder(t)
		s := g.open(rec)
		s.ExpectResume(1)
		for task := range uint32(crashTasks) {
			s.Start(resumed(crashOrder(g.data, task)))
		}
		s.ResumeDone(1)
		rec.WaitFinals(crashTasks)
		if n := g.starts(); n != crashTasks {
			t.Errorf("round %d: %d starts, want %d", round, n, crashTasks)
		}
		for task := range uint32(crashTasks) {
			ended(t, rec.WaitFinal(key(task)), 0, 0, "")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
