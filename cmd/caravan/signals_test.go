package main

import (
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// shut is a stream whose reader has gone.
type shut struct{ io.Writer }

func (shut) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

// A run without a reader of its progress is killed, as at an interrupt.
func TestRunStopsWhenItsReaderIsGone(t *testing.T) {
	for _, stream := range []string{"stdout", "stderr"} {
		a := newAPI(t, map[string]string{
			"GET /v1/health": `{}`, "GET /v1/dagrun/7/summary": state("RUNNING") + "\n--\n" + state("RUNNING") + "\n--\n" + state("KILLED"),
			"POST /v1/dagrun": `{"runID":7}`, "DELETE /v1/dagrun/7": `{}`, "GET /ready": `{}`,
		})
		p := newProgram(`{"tasks":{"a":{"job":{"commandString":"true"}}}}`)
		var caught []os.Signal
		p.CatchSignals = func(s ...os.Signal) { caught = append(caught, s...) }
		p.Stderr = shut{}
		if stream == "stdout" {
			p.Stdout, p.Stderr = shut{}, p.errs
		}
		code := p.run("run", "-", "--server", a.URL)
		if stream == "stderr" && (code != exitKilled || !slices.Contains(a.called(), "DELETE /v1/dagrun/7")) {
			t.Errorf("%s: exit %d: %q", stream, code, a.called())
		}
		if stream == "stdout" && code == exitCompleted {
			t.Errorf("%s: exit %d", stream, code)
		}
		if !slices.Equal(caught, []os.Signal{syscall.SIGHUP, syscall.SIGQUIT}) {
			t.Errorf("caught %v", caught)
		}
	}
}

// Watching the end of a stream does not change whether it is a terminal.
func TestPipeWriterKeepsTheTerminal(t *testing.T) {
	p := newProgram("")
	p.Terminal = func(stream any) bool { return stream == p.errs }
	errs := p.errs
	p.interrupt = func() { t.Error("interrupted") }
	p.stopWithTerminal()
	if !p.Terminal(p.Stderr) || p.Terminal(p.Stdout) {
		t.Error("the terminal is not known")
	}
	if _, err := io.WriteString(p.Stderr, "x"); err != nil || !strings.Contains(errs.String(), "x") {
		t.Errorf("%v, %q", err, errs)
	}
}

// The same signal, sent to the process and then to its group, counts once. A later one counts, though
// the signals have come without a pause.
func TestSignalsAtOnceCountAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram("")
		signals := make(chan os.Signal)
		p.Signals = signals
		first, second := make(chan struct{}), make(chan struct{})
		go p.handleSignals(make(chan struct{}), func() { close(first) }, func() { close(second) })
		tick := time.NewTicker(signalDedupWindow / 5)
		defer tick.Stop()
		for range 5 { // 0 to 80 ms
			signals <- os.Interrupt
			<-tick.C
		}
		<-first
		select {
		case <-second:
			t.Error("signals at once count as two")
		default:
		}
		signals <- os.Interrupt
		<-second
	})
}

// stuck is a stream that blocks until it is closed.
type stuck chan struct{}

func (s stuck) Write(p []byte) (int, error) { <-s; return len(p), nil }

var _ io.Writer = stuck(nil)

// The command hangs in a call that does not react to signals.
func TestSecondSignalExitsAHangingCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram("")
		p.errs, p.out = newBuffer(), newBuffer()
		p.Stderr = p.errs
		signals, free := make(chan os.Signal), make(stuck)
		p.Signals, p.Stdout = signals, free
		exited := make(chan int, 1)
		p.Exit = func(code int) { exited <- code }
		ended := make(chan int)
		go func() { ended <- p.run("version") }()
		signals <- syscall.SIGTERM
		<-time.After(2 * signalDedupWindow) // the program measures real time
		signals <- syscall.SIGTERM
		<-time.After(time.Second) // the program measures real time
		select {
		case code := <-exited:
			if code != exitInterrupted || !strings.Contains(p.errs.String(), "stopped at once by a second signal") {
				t.Errorf("exit %d: %s", code, p.errs.String())
			}
		default:
			t.Error("it goes on")
		}
		close(free)
		testenv.Receive(t, "end", ended)
	})
}

// A command that reacts to signals returns by itself.
func TestSecondSignalLetsTheCommandReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram("")
		p.Exit = func(code int) { t.Errorf("ended from without: %d", code) }
		done := make(chan struct{})
		go p.exitUnlessDone(done)
		<-time.After(secondSignalGrace / 2) // the program measures real time
		close(done)
		synctest.Wait()
		<-time.After(time.Second) // the program measures real time
	})
}
