package main

import "testing"

// TestLogsOfATaskThatHasNotBegun: -f waits for it, as long as it can begin.
func TestLogsOfATaskThatHasNotBegun(t *testing.T) {
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
		{"logs", "7", "b"},                         // nothing is followed
		{"logs", "-f", "7", "b", "--attempt", "2"}, // which may never come
		{"logs", "-f", "7", "zz"},                  // there is none
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
