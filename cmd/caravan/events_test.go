package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestEvents(t *testing.T) {
	const (
		summary = "id: 4\nevent: summary\ndata: {\"runID\":7,\"state\":\"RUNNING\",\"lastUpdate\":\"1000000000\",\"taskCounts\":{\"RUNNING\":1}}\n\n"
		tasks   = "event: tasks\ndata: [{\"time\":\"1000000000\",\"task\":\"a\\u0007\",\"state\":\"RETRY\",\"attempt\":1,\"rc\":3},{\"time\":\"2000000000\",\"task\":\"b\",\"state\":\"RUNNING\",\"attempt\":1}]\n\n"
		end     = "event: gap\ndata: {\"missed\":2}\n\nevent: state\ndata: {\"time\":\"3000000000\",\"state\":\"ERRORED\"}\n\n" +
			"id: 9\nevent: summary\ndata: {\"runID\":7,\"state\":\"ERRORED\",\"lastUpdate\":\"3000000000\",\"taskCounts\":{\"ERRORED\":1}}\n\n"
	)
	a := newAPI(t, map[string]string{
		"GET /v1/dagrun/7/events": summary + tasks + end,
		"GET /v1/dagrun/8/events": "204 ", "GET /v1/dagrun/8/summary": state("KILLED"),
		"GET /v1/events?tag=x": "event: run\ndata: {\"runID\":7,\"state\":\"QUEUED\",\"lastUpdate\":\"1\",\"taskCounts\":{}}\n\n",
	})
	p := newProgram("")
	if c := p.run("events", "7", "--server", a.URL); c != exitErrored {
		t.Errorf("exit %d: %s", c, p.errs)
	}
	for _, want := range []string{"run 7 RUNNING: 1 RUNNING\n", `task a\a RETRY (attempt 1, rc 3)` + "\n", "task b RUNNING (attempt 1)\n", "2 changes missed\n", "  ERRORED\n", "run 7 ERRORED: 1 ERRORED\n"} {
		if !strings.Contains(p.out.String(), want) {
			t.Errorf("no %q in\n%s", want, p.out)
		}
	}
	p = newProgram("")
	if c := p.run("events", "7", "-o", "json", "--server", a.URL); c != exitErrored || strings.Count(p.out.String(), "\n") != 5 ||
		!strings.Contains(p.out.String(), `{"id":"4","missed":2}`) || !strings.Contains(p.out.String(), `"rc":3`) {
		t.Errorf("exit %d: %s%s", c, p.out, p.errs)
	}
	p = newProgram("")
	if c := p.run("events", "8", "--server", a.URL); c != exitKilled {
		t.Errorf("a run that has ended: exit %d: %s%s", c, p.out, p.errs)
	}
	p = newProgram("")
	code := p.start("events", "--tag", "x", "--server", a.URL)
	p.out.await(t, "run 7 QUEUED")
	p.signals <- os.Interrupt
	if c := <-code; c != exitInterrupted || p.errs.String() != "caravan: interrupted\n" {
		t.Errorf("interrupted: exit %d: %s", c, p.errs)
	}
	for _, args := range [][]string{{"events", "x"}, {"events", "7", "--tag", "x"}, {"events", "1", "2"}} {
		if c := newProgram("").run(args...); c != exitUsage {
			t.Errorf("%q: exit %d", args, c)
		}
	}
}

func TestSubmitLines(t *testing.T) {
	a := newAPI(t, map[string]string{
		"POST /v1/dagruns": `{"runID":0}` + "\n" + `{"status":400,"error":"no tasks","errors":[{"pointer":"/tasks","message":"no tasks"}]}` + "\n" + `{"runID":3}` + "\n",
	})
	p := newProgram("a\nb\nc\n")
	if c := p.run("submit", "--lines", "-", "--server", a.URL); c != exitInvalid || p.out.String() != "0\n-\n3\n" || !strings.Contains(p.errs.String(), "line 2: no tasks") {
		t.Errorf("exit %d: %s%s", c, p.out, p.errs)
	}
	if called := a.called(); !slices.Equal(called, []string{"POST /v1/dagruns a\nb\nc"}) {
		t.Errorf("called %q", called)
	}
	p = newProgram("")
	if c := p.run("submit", "--lines", file(t, "g", "a\n"), "-o", "json", "--server", a.URL); c != exitInvalid || strings.Count(p.out.String(), "\n") != 3 || !strings.Contains(p.out.String(), `{"runID":3}`) {
		t.Errorf("exit %d: %s%s", c, p.out, p.errs)
	}
	for _, args := range [][]string{{"submit", "--lines", "--wait", "-"}, {"submit", "--lines", "/no/such/file"}} {
		if c := newProgram("").run(args...); c != exitUsage {
			t.Errorf("%q: exit %d", args, c)
		}
	}
}
