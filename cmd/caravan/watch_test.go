package main

import (
	"os"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestEventsOfOneRunAndOfAllRuns(t *testing.T) {
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
	if c := testenv.Receive(t, "exit code", code); c != exitInterrupted || p.errs.String() != "caravan: interrupted\n" {
		t.Errorf("interrupted: exit %d: %s", c, p.errs)
	}
	for _, args := range [][]string{{"events", "x"}, {"events", "7", "--tag", "x"}, {"events", "1", "2"}} {
		if c := newProgram("").run(args...); c != exitUsage {
			t.Errorf("%q: exit %d", args, c)
		}
	}
}

// With -f the command waits as long as the task may start.
func TestLogsFollowWaitsForTheTaskToStart(t *testing.T) {
	const log, none = "GET /v1/dagrun/7/task/a/log?follow=1&stream=stdout", `404 {"error":"run 7: task \"a\" has no attempt yet"}`
	a := newAPI(t, map[string]string{
		log:                             none + "\n--\nhello\n",
		"GET /v1/dagrun/7/task/a/state": `{"state":"QUEUED"}` + "\n--\n" + `{"state":"RUNNING"}`,
		"GET /v1/dagrun/7/state":        `{"state":"RUNNING"}`,
		"GET /v1/dagrun/7/task/b/state": `{"state":"QUEUED"}`,
		"GET /v1/dagrun/8/task/a/state": `{"state":"QUEUED"}`,
		"GET /v1/dagrun/8/state":        `{"state":"ERRORED"}`,
	})
	p := newProgram("")
	if code := p.run("logs", "-f", "7", "a", "--server", a.URL); code != 0 || p.out.String() != "hello\n" {
		t.Errorf("exit %d: %s%s", code, p.out, p.errs)
	}
	for _, args := range [][]string{
		{"logs", "-f", "8", "a"},                   // the run has ended
		{"logs", "7", "b"},                         // without -f
		{"logs", "-f", "7", "b", "--attempt", "2"}, // the attempt may never come
		{"logs", "-f", "7", "zz"},                  // an unknown task
	} {
		p := newProgram("")
		if code := p.run(append(args, "--server", a.URL)...); code != exitNotFound {
			t.Errorf("%q: exit %d: %s", args, code, p.errs)
		}
	}
	p = newProgram("")
	p.signals <- nil
	if code := p.run("logs", "-f", "7", "b", "--server", a.URL); code != exitInterrupted || p.errs.String() != "caravan: interrupted\n" {
		t.Errorf("interrupted: exit %d: %s", code, p.errs)
	}
}
