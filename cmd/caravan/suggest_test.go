package main

import (
	"strings"
	"testing"
)

// TestHints: what is no command and no flag is refused with what may be meant.
func TestHints(t *testing.T) {
	for args, want := range map[string]string{
		"status":                   "caravan: unknown command \"status\": did you mean get?\n",
		"res":                      "caravan: unknown command \"res\": did you mean restart or restore or resume?\n",
		"sumbit":                   "caravan: unknown command \"sumbit\": did you mean submit?\n",
		"List":                     "caravan: unknown command \"List\": did you mean ls?\n",
		"cancel":                   "caravan: unknown command \"cancel\": did you mean kill?\n",
		"valid":                    "caravan: unknown command \"valid\": did you mean validate?\n",
		"wrker":                    "caravan: unknown command \"wrker\"; `caravan help` lists them\n", // nothing for users
		"xyzzy":                    "caravan: unknown command \"xyzzy\"; `caravan help` lists them\n",
		"help":                     "",
		"help ls":                  "",
		"help xyzzy":               "caravan: unknown command \"xyzzy\"; `caravan help` lists them\n",
		"help list":                "caravan: unknown command \"list\": did you mean ls?\n",
		"submit --wiat x":          "caravan: submit: unknown flag: --wiat: did you mean --wait?\n",
		"serve --kill-grce 5s":     "caravan: serve: unknown flag: --kill-grce: did you mean --kill-grace?\n",
		"ls --xyzzy":               "caravan: ls: unknown flag: --xyzzy\n",
		"ls -x":                    "caravan: ls: unknown shorthand flag: 'x' in -x\n",
		"--sever http://127.0.0.1": "caravan: unknown flag: --sever\n", // the commands have it
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

// TestTaskHints: a task that the run has not is refused with the one that may be meant.
func TestTaskHints(t *testing.T) {
	a := newAPI(t, map[string]string{
		"GET /v1/dagrun/7/tasks?limit=1000": `{"tasks":[{"name":"build_0"},{"name":"build_1"},{"name":"Collect"},{"name":"s_0"}],"next":""}`,
	})
	for args, want := range map[string]string{
		"logs 7 build":         "task/build/log: did you mean build_0?\n",
		"logs 7 collcet":       "task/collcet/log: did you mean Collect?\n",
		"get 7 --task s":       "task/s: did you mean s_0?\n",
		"kill 7 buld_1":        "task/buld_1: did you mean build_1?\n",
		"kill 7 xyzzy":         "task/xyzzy\n",
		"logs 7 s_0":           "task/s_0/log\n", // it is there: its attempt is not
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
