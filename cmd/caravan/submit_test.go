package main

import (
	"slices"
	"strings"
	"testing"
)

// Warnings of the server, or of the offline check, are printed and the graph is accepted; with
// --strict it is refused.
func TestWarningsAreShownAndStrictRefusesThem(t *testing.T) {
	const (
		warnings = `"warnings":[{"pointer":"/tasks/a/job/timeout","message":"did you mean timeoutSeconds?"}]}`
		shown    = "caravan: warning: /tasks/a/job/timeout: did you mean timeoutSeconds?\n"
		refusal  = `400 {"valid":false,"error":"/tasks/a/job/timeout: no","errors":[{"pointer":"/tasks/a/job/timeout","message":"no"}]}`
		done     = `{"runID":7,"tag":"","state":"COMPLETED","startTime":"1","lastUpdate":"2","taskCounts":{"COMPLETED":1},"tasks":1}`
	)
	a := newAPI(t, map[string]string{
		"POST /v1/dagrun": `{"runID":7,` + warnings, "POST /v1/dagrun/validate": `{"valid":true,` + warnings, "POST /v1/dagruns": `{"runID":7,` + warnings,
		"POST /v1/dagrun?strict=1": refusal, "POST /v1/dagrun/validate?strict=1": refusal,
		"GET /ready": "{}", "GET /v1/dagrun/7/state": `{"state":"COMPLETED"}`, "GET /v1/dagrun/7/summary": done,
	})
	for command, out := range map[string]string{"submit": "7\n", "validate": "valid\n", "run": "run 7 COMPLETED: 1 COMPLETED, took 0.0s\n"} {
		p := newProgram("{}")
		if code := p.run(command, "-", "--server", a.URL); code != 0 || !strings.Contains(p.errs.String(), shown) || command != "run" && p.out.String() != out {
			t.Errorf("%s: exit %d\n%s%s", command, code, p.out, p.errs)
		}
		p = newProgram("{}")
		if code := p.run(command, "-", "--strict", "--server", a.URL); code != exitInvalid {
			t.Errorf("%s --strict: exit %d: %s", command, code, p.errs)
		}
	}
	const slip = `{"tasks":{"a":{"job":{"commandString":"true","timeout":3}}}}`
	p := newProgram(slip)
	if code := p.run("validate", "-", "--offline"); code != 0 || p.out.String() != "valid\n" || !strings.Contains(p.errs.String(), "/tasks/a/job/timeout: unknown member") {
		t.Errorf("offline: exit %d\n%s%s", code, p.out, p.errs)
	}
	p = newProgram(slip)
	if code := p.run("validate", "-", "--offline", "--strict"); code != exitInvalid || !strings.Contains(p.errs.String(), "did you mean timeoutSeconds?") {
		t.Errorf("offline and strict: exit %d\n%s%s", code, p.out, p.errs)
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
