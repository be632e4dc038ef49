package main

import (
	"strings"
	"testing"
)

// Unknown commands and flags are errors that name similar ones.
func TestUnknownCommandsAndFlagsSuggestSimilarOnes(t *testing.T) {
	for args, want := range map[string]string{
		"status":                   "caravan: unknown command \"status\": did you mean get?\n",
		"res":                      "caravan: unknown command \"res\": did you mean restart or restore or resume?\n",
		"sumbit":                   "caravan: unknown command \"sumbit\": did you mean submit?\n",
		"List":                     "caravan: unknown command \"List\": did you mean ls?\n",
		"cancel":                   "caravan: unknown command \"cancel\": did you mean kill?\n",
		"cancle":                   "caravan: unknown command \"cancle\": did you mean kill?\n", // a misspelled synonym
		"Shwo":                     "caravan: unknown command \"Shwo\": did you mean get?\n",
		"stauts":                   "caravan: unknown command \"stauts\": did you mean get or serve?\n", // status, state, start
		"descr":                    "caravan: unknown command \"descr\": did you mean get?\n",
		"help cancle":              "caravan: unknown command \"cancle\": did you mean kill?\n",
		"valid":                    "caravan: unknown command \"valid\": did you mean validate?\n",
		"wrker":                    "caravan: unknown command \"wrker\": did you mean worker?\n",
		"xyzzy":                    "caravan: unknown command \"xyzzy\"; `caravan help` lists them\n",
		"help":                     "",
		"help ls":                  "",
		"help xyzzy":               "caravan: unknown command \"xyzzy\"; `caravan help` lists them\n",
		"help list":                "caravan: unknown command \"list\": did you mean ls?\n",
		"submit --wiat x":          "caravan: submit: unknown flag: --wiat: did you mean --wait?\n",
		"serve --kill-grce 5s":     "caravan: serve: unknown flag: --kill-grce: did you mean --kill-grace?\n",
		"ls --xyzzy":               "caravan: ls: unknown flag: --xyzzy\n",
		"ls -x":                    "caravan: ls: unknown shorthand flag: 'x' in -x\n",
		"--sever http://127.0.0.1": "caravan: unknown flag: --sever\n", // a flag of the commands
		"get":                      "caravan: get takes the ID of a run, not 0 arguments: caravan get ID\n",
		"logs 7":                   "caravan: logs takes the ID of a run and the name of a TASK, not 1 argument: caravan logs ID TASK\n",
		"ls 7":                     "caravan: ls takes no arguments, not 1 argument: caravan ls\n",
	} {
		p := newProgram("")
		code := p.run(strings.Fields(args)...)
		if wantCode := map[bool]int{true: exitCompleted, false: exitUsage}[want == ""]; code != wantCode {
			t.Errorf("%s: exit %d", args, code)
		}
		same(t, args, p.errs.String(), want)
	}
}

// An unknown task is an error that names a similar one.
func TestUnknownTasksSuggestSimilarOnes(t *testing.T) {
	a := newAPI(t, map[string]string{
		"GET /v1/dagrun/7/tasks?limit=1000": `{"tasks":[{"name":"build_0"},{"name":"build_1"},{"name":"Collect"},{"name":"s_0"}],"next":""}`,
	})
	for args, want := range map[string]string{
		"logs 7 build":         "task/build/log: did you mean build_0?\n",
		"logs 7 collcet":       "task/collcet/log: did you mean Collect?\n",
		"get 7 --task s":       "task/s: did you mean s_0?\n",
		"kill 7 buld_1":        "task/buld_1: did you mean build_1?\n",
		"kill 7 xyzzy":         "task/xyzzy\n",
		"logs 7 s_0":           "task/s_0/log\n", // the task exists, its attempt does not
		"logs 8 build":         "task/build/log\n",
		"logs 7 x --attempt 9": "task/x/log\n",
	} {
		p := newProgram("")
		if code := p.run(append(strings.Fields(args), "--server", a.URL)...); code != exitNotFound {
			t.Errorf("%s: exit %d", args, code)
		}
		if !strings.HasSuffix(p.errs.String(), want) {
			t.Errorf("%s: %s, want %s", args, p.errs, want)
		}
	}
}

func TestNearestWord(t *testing.T) {
	words := []string{"kill-grace", "max-body", "max-tasks", "data", "ca"}
	for word, want := range map[string]string{
		"kill-grac": "kill-grace", "KILL-GRACE": "kill-grace", "maxtask": "max-tasks", "max": "max-body", "dtaa": "data", "c": "", "": "", "xyz": "", "kill": "kill-grace",
	} {
		if got := nearest(word, words); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

// A shell gets the words that can follow a command line.
func TestShellCompletion(t *testing.T) {
	a := newAPI(t, map[string]string{
		"GET /v1/dagruns?limit=100":                                 `[` + state("RUNNING") + `,{"runID":8,"tag":"sweep","state":"PAUSED"}]`,
		"GET /v1/dagruns?limit=100&state=ERRORED%2CKILLED%2CPAUSED": `[{"runID":8,"tag":"sweep","state":"PAUSED"}]`,
		"GET /v1/dagrun/7/tasks?limit=100":                          `{"tasks":[{"name":"build_0","state":"RUNNING"},{"name":"b\u001b","state":"QUEUED"},{"name":"test","state":"QUEUED"}],"next":""}`,
	})
	const nothing, files = ":4\n", ":0\n" // cobra's directives
	for _, tc := range []struct{ args, want string }{
		{"val", "validate\tCheck a graph without running it, and list all its problems\n" + nothing},
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
		{"ls -o j", "table\njson\n" + nothing}, // the shell selects
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
	same(t, "stderr", p.errs.String(), "caravan: unknown shell \"tcsh\": must be one of bash, zsh, fish, powershell\n")
}
