package http

import (
	"strings"
	"testing"
)

// TestWarnings: a member that is not known is told of by submission, batch and
// validation, and refused where the query is strict. Without one the answers are as ever.
func TestWarnings(t *testing.T) {
	const (
		slip    = `{"tasks":{"a":{"job":{"commandString":"true","timeout":3,"retries":2}}}}`
		sound   = `{"tasks":{"a":{"job":{"commandString":"true"}}}}`
		told    = `"warnings":[{"pointer":"/tasks/a/job/timeout","message":"unknown member \"timeout\" is kept and has no effect: did you mean timeoutSeconds?"},`
		refusal = `"errors":[{"pointer":"/tasks/a/job/timeout","message":"unknown member \"timeout\"`
	)
	long := strings.Replace(slip, `"timeout"`, `"pad":"`+strings.Repeat("x", longBodyBytes)+`","timeout"`, 1)
	e := seedEngine(t)
	s := serve(t, e)
	for _, c := range []struct {
		target, body, begins, has string
		status                    int
	}{
		{"/v1/dagrun", sound, `{"runID":0}`, "", 200},
		{"/v1/dagrun?strict=1", sound, `{"runID":1}`, "", 200},
		{"/v1/dagrun", slip, `{"runID":2,` + told, "maxRetries, outside the job", 200},
		{"/v1/dagrun?strict=0", slip, `{"runID":3,` + told, "", 200},
		{"/v1/dagrun?strict=1", slip, `{"valid":false,`, refusal, 400},
		{"/v1/dagrun?strict=x", slip, `{`, "must be 1 or 0", 400},
		{"/v1/dagrun/validate", sound, `{"valid":true}`, "", 200},
		{"/v1/dagrun/validate", slip, `{"valid":true,` + told, "", 200},
		{"/v1/dagrun/validate?strict", slip, `{"valid":false,`, refusal, 400},
		{"/v1/dagrun/validate", long, `{"valid":true,"warnings":[{"pointer":"/tasks/a/job/pad"`, "did you mean timeoutSeconds?", 200},
		{"/v1/dagrun/validate?strict", long, `{"valid":false,`, "did you mean timeoutSeconds?", 400},
	} {
		r := s.do("POST", c.target, c.body)
		if r.status != c.status || !strings.HasPrefix(r.body, c.begins) || !strings.Contains(r.body, c.has) || c.has == "" && !strings.Contains(c.begins, "warn") && r.body != c.begins {
			t.Errorf("%s: %d %.300s", c.target, r.status, r.body)
		}
	}
	lines := func(target string) []string {
		r := s.do("POST", target, sound+"\n"+slip+"\n"+sound+"\n", "Content-Type: "+linesType)
		return strings.Split(strings.TrimSpace(r.body), "\n")
	}
	if got := lines("/v1/dagruns"); len(got) != 3 || got[0] != `{"runID":4}` || !strings.HasPrefix(got[1], `{"runID":5,`+told) || got[2] != `{"runID":6}` {
		t.Errorf("lines: %q", got)
	}
	if got := lines("/v1/dagruns?strict=1"); len(got) != 3 || got[0] != `{"runID":7}` || !strings.Contains(got[1], refusal) || got[2] != `{"runID":8}` {
		t.Errorf("lines, strictly: %q", got)
	}
}
