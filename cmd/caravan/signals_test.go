package main

import (
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// shut is a stream whose reader has gone.
type shut struct{ io.Writer }

func (shut) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

// TestRunEndsWithItsReader: a run whose progress nobody reads any more is killed, as at an
// interrupt.
func TestRunEndsWithItsReader(t *testing.T) {
	for _, stream := range []string{"stdout", "stderr"} {
		a := newAPI(t, map[string]string{
			"GET /v1/health": `{}`, "GET /v1/dagrun/7/summary": state("RUNNING") + "\n--\n" + state("RUNNING") + "\n--\n" + state("KILLED"),
			"POST /v1/dagrun": `{"runID":7}`, "DELETE /v1/dagrun/7": `{}`, "GET /ready": `{}`,
		})
		p := newProgram(`{"tasks":{"a":{"job":{"commandString":"true"}}}}`)
		var caught []os.Signal
		p.Catch = func(s ...os.Signal) { caught = append(caught, s...) }
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

// TestOutletsAreTerminalsToo: what a stream is does not change when its end is watched.
func TestOutletsAreTerminalsToo(t *testing.T) {
	p := newProgram("")
	p.Terminal = func(stream any) bool { return stream == p.errs }
	errs := p.errs
	p.interrupt = func() { t.Error("interrupted") }
	p.endsWithItsTerminal()
	if !p.Terminal(p.Stderr) || p.Terminal(p.Stdout) {
		t.Error("the terminal is not known")
	}
	if _, err := io.WriteString(p.Stderr, "x"); err != nil || !strings.Contains(errs.String(), "x") {
		t.Errorf("%v, %q", err, errs)
	}
}
