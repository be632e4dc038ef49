package main

import (
	"strings"
	"testing"
)

// TestCompletion: what a shell is offered behind a command line that has been begun.
func TestCompletion(t *testing.T) {
	a := newAPI(t, map[string]string{
		"GET /v1/dagruns?limit=100":                                 `[` + state("RUNNING") + `,{"runID":8,"tag":"sweep","state":"PAUSED"}]`,
		"GET /v1/dagruns?limit=100&state=ERRORED%2CKILLED%2CPAUSED": `[{"runID":8,"tag":"sweep","state":"PAUSED"}]`,
		"GET /v1/dagrun/7/tasks?limit=100":                          `{"tasks":[{"name":"build_0","state":"RUNNING"},{"name":"b\u001b","state":"QUEUED"},{"name":"test","state":"QUEUED"}],"next":""}`,
	})
	const nothing, files = ":4\n", ":0\n" // cobra's directives
	for _, tc := range []struct{ args, want string }{
		{"val", "validate\tCheck a graph without running it, and list all that is wrong with it\n" + nothing},
		{"help resu", "resume\tResume a run that is paused\n" + nothing},
		{"wait ", "7\tRUNNING\n8\tPAUSED sweep\n" + nothing},
		{"wait 8", "8\tPAUSED sweep\n" + nothing},
		{"wait 8 ", nothing},
		{"pause ", "7\tRUNNING\n8\tPAUSED sweep\n" + nothing},
		{"restart ", "8\tPAUSED sweep\n" + nothing},
		{"kill 7 ", "build_0\tRUNNING\ntest\tQUEUED\n" + nothing},
		{"logs 7 te", "test\tQUEUED\n" + nothing},
		{"logs x ", nothing},
		{"logs 9 ", nothing},
		{"get 7 --task b", "build_0\tRUNNING\n" + nothing},
		{"ls ", nothing},
		{"ls -o j", "table\njson\n" + nothing}, // the shell picks
		{"ls --state ", "QUEUED\nRUNNING\nPAUSED\nCOMPLETED\nERRORED\nKILLED\n" + nothing},
		{"get 7 --state ", "QUEUED\nRUNNING\nRETRY\nCOMPLETED\nERRORED\nKILLED\n" + nothing},
		{"logs 7 test --stream std", "stdout\nstderr\n" + nothing},
		{"serve --log-level w", "debug\ninfo\nwarn\nerror\n" + nothing},
		{"run --log-format ", "text\njson\n" + nothing},
		{"run ex", files},
		{"completion ", "bash\nzsh\nfish\npowershell\n" + nothing},
	} {
		p := newProgram("")
		p.env[envServer] = a.URL
		args := append([]string{"__complete"}, strings.Split(tc.args, " ")...)
		if code := p.run(args...); code != 0 || p.out.String() != tc.want {
			t.Errorf("%s: exit %d, %q, want %q", tc.args, code, p.out, tc.want)
		}
	}
	p := newProgram("")
	p.env[envServer] = nowhere(t)
	if code := p.run("__complete", "wait", ""); code != 0 || p.out.String() != nothing {
		t.Errorf("without a server: exit %d, %q", code, p.out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		p := newProgram("")
		if code := p.run("completion", shell); code != 0 || !strings.Contains(p.out.String(), "__complete") {
			t.Errorf("%s: exit %d: %s", shell, code, p.errs)
		}
	}
	p = newProgram("")
	if code := p.run("completion", "tcsh"); code != exitUsage {
		t.Errorf("exit %d: %s", code, p.errs)
	}
	same(t, "stderr", p.errs.String(), "caravan: \"tcsh\" is no shell known here: those are bash, zsh, fish, powershell\n")
}
