package specjson

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/caravan-dag/caravan/dag"
)

// problemLines is problems as "pointer: message".
func problemLines(problems dag.Problems) []string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.Pointer+": "+p.Message)
	}
	return lines
}

func same(t *testing.T, doc string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%.300s\n got %s\nwant %s", doc, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

// Every member of a spec, in every form.
func TestDecode(t *testing.T) {
	s, problems := Decode([]byte(`{
		"tag": "t\u00e9\/\ud83d\ude00",
		"tags": {"z": "1", "a": ""},
		"parameters": {"B": ["1", "2"], "A": "x", "E": []},
		"jobDefaults": {"environment": {"K": "v=w", "L": ""}, "cores": 0.5},
		"tasks": {
			"second": {
				"job": {"command": ["a", ""], "commandString": "", "environment": ["A=1", "B="], "cores": "1e1", "memoryMB": 1.25,
					"workDir": "/w", "executor": "noop", "timeoutSeconds": 1.5, "other": {"x": [1, {"y": null}]}, "flag": true},
				"parents": ["p", {"task": "q", "match": ["B", "A"]}, {"task": "r"}],
				"children": [],
				"maxRetries": 3, "retryIntervalSeconds": 0.25, "retryBackoff": 1.5, "retryMaxIntervalSeconds": 60,
				"isGenerator": true
			},
			"first": {"isGenerator": false}
		}
	}`))
	if problems != nil {
		t.Fatal(problems)
	}
	want := &dag.Spec{
		Tag:        "té/😀",
		Tags:       []dag.Label{{Name: "a", Value: ""}, {Name: "z", Value: "1"}},
		Parameters: []dag.Parameter{{Name: "A", Values: []string{"x"}}, {Name: "B", List: true, Values: []string{"1", "2"}}, {Name: "E", List: true}},
		Defaults: &dag.Job{
			Environment: []string{"K=v=w", "L="}, HasEnv: true, EnvObject: true,
			Cores: dag.Quantity{Raw: "0.5", Milli: 500},
		},
		Tasks: []dag.TaskSpec{{
			Name: "second",
			Job: dag.Job{
				Command: []string{"a", ""}, HasString: true, Environment: []string{"A=1", "B="}, HasEnv: true,
				Cores: dag.Quantity{Raw: `"1e1"`, Milli: 10_000}, MemoryMB: dag.Quantity{Raw: "1.25", Milli: 1250},
				WorkDir: "/w", Executor: "noop", Timeout: 1500 * time.Millisecond,
				Other: []dag.Member{{Name: "timeoutSeconds", Raw: "1.5"}, {Name: "other", Raw: `{"x": [1, {"y": null}]}`}, {Name: "flag", Raw: "true"}},
			},
			Parents:   []dag.EdgeSpec{{Task: "p"}, {Task: "q", Match: []string{"B", "A"}}, {Task: "r"}},
			Retry:     dag.RetryPolicy{MaxRetries: 3, Interval: 250 * time.Millisecond, Backoff: 1.5, MaxInterval: time.Minute},
			Generator: true,
		}, {Name: "first"}},
	}
	if s.Tasks[0].Children != nil && len(s.Tasks[0].Children) == 0 {
		s.Tasks[0].Children = nil
	}
	for i := range s.Parameters {
		if len(s.Parameters[i].Values) == 0 {
			s.Parameters[i].Values = nil
		}
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}

func TestDecodeDoesNotKeepTheDocument(t *testing.T) {
	doc := []byte(`{"tag": "keep", "tasks": {"a": {"job": {"command": ["echo"], "x": {"y": 1}}}}}`)
	s, problems := Decode(doc)
	if problems != nil {
		t.Fatal(problems)
	}
	clear(doc)
	if s.Tag != "keep" || s.Tasks[0].Name != "a" || s.Tasks[0].Job.Command[0] != "echo" || s.Tasks[0].Job.Other[0].Raw != `{"y": 1}` {
		t.Errorf("%+v", s)
	}
}

func TestSyntaxErrors(t *testing.T) {
	for _, c := range []struct{ doc, want string }{
		{"", "invalid JSON at line 1, column 1 (offset 0): the document is empty"},
		{" \n ", "invalid JSON at line 2, column 2 (offset 3): the document is empty"},
		{"{", "invalid JSON at line 1, column 2 (offset 1): the document ends too early"},
		{"{\"tasks\": {\n \"a\":}}", "invalid JSON at line 2, column 6 (offset 17): invalid character '}' at start of value"},
		{`{"x": 1, "x": 2, "tag": nope}`, "invalid JSON at line 1, column 26 (offset 25): invalid character 'o' in literal null (expecting 'u')"},
		{`{"tag": "a` + "\n" + `"}`, "invalid JSON at line 1, column 11 (offset 10): invalid character '\\n' in string (expecting non-control character)"},
		{`{"tag": 01}`, "invalid JSON at line 1, column 10 (offset 9): invalid character '1' after object value (expecting ',' or '}')"},
		{`{"tag": NaN}`, "invalid JSON at line 1, column 9 (offset 8): invalid character 'N' at start of value"},
		{`{"tasks": {"a": {"job": {"x": [1,]}}}}`, "invalid JSON at line 1, column 33 (offset 32): invalid character ',' at start of value"},
		{`{"tag": "\x"}`, "invalid JSON at line 1, column 10 (offset 9): invalid escape sequence `\\x` in string"},
		{strings.Repeat("[", 20_000), "invalid JSON at line 1, column 10001 (offset 10000): exceeded max depth"},
		{strings.Repeat(`{"a":`, 20_000), "invalid JSON at line 1, column 50001 (offset 50000): exceeded max depth"},
	} {
		s, problems := Decode([]byte(c.doc))
		same(t, c.doc, problemLines(problems), []string{": " + c.want})
		if s != nil {
			t.Errorf("%.50s: there is a spec", c.doc)
		}
		if tasks, problems := DecodeTasks([]byte(c.doc)); tasks != nil || len(problems) != 1 || !strings.HasPrefix(problems[0].Message, "invalid JSON") {
			t.Errorf("%.50s: as a set: %v, %v", c.doc, tasks, problems)
		}
	}
}

func TestProblemsOfASpec(t *testing.T) {
	for _, c := range []struct {
		doc  string
		want []string
	}{
		{`[]`, []string{": the spec must be an object, it is a list"}},
		{`null`, []string{": the spec must be an object, it is null"}},
		{`"x" 5`, []string{": the spec must be an object, it is a string", ": there is more after the end of the document, at line 1, column 4 (offset 3)"}},
		{`{}`, []string{": tasks is missing"}},
		{`{"tasks": null}`, []string{"/tasks: tasks must be an object, it is null"}},
		{`{"tasks": {"a": {}}} {}`, []string{": there is more after the end of the document, at line 1, column 21 (offset 20)"}},
		{`{"tasks": {"a": {}}} garbage`, []string{": there is more after the end of the document, at line 1, column 21 (offset 20)"}},
		{`{"tag": 5, "tags": {"a": 1, "b": null}, "tasks": {"a": {}}}`,
			[]string{"/tag: tag must be a string, it is a number", "/tags/a: a tag must be a string, it is a number", "/tags/b: a tag must be a string, it is null"}},
		{`{"tags": [], "jobDefaults": 1, "parameters": false, "tasks": {"a": {}}}`,
			[]string{"/tags: tags must be an object, it is a list", "/jobDefaults: jobDefaults must be an object, it is a number",
				"/parameters: parameters must be an object, it is true or false"}},
		{`{"what": {"x": 1, "x": 2}, "a/b~c": 1, "tasks": {"a": {}}}`,
			[]string{`/what: unknown member "what": ` + specMembers, "/what/x: duplicate member", `/a~1b~0c: unknown member "a/b~c": ` + specMembers}},
		{`{"tag": "a", "\u0074ag": "b", "tasks": {"a": {}, "a": null}}`, []string{"/tag: duplicate member", "/tasks/a: duplicate member"}},
		{`{"parameters": {"": "a", "{b}": [], "c": 5, "d": ["x", 1, null], "e": "\u0000", "f\u0000": "", "g": null, "c": []}, "tasks": {"a": {}}}`,
			[]string{"/parameters/: the name of a parameter is empty", "/parameters/{b}: the name of a parameter must not have braces",
				"/parameters/c: a parameter, unless it is a list of strings, must be a string, it is a number",
				"/parameters/d/1: a value must be a string, it is a number", "/parameters/d/2: a value must be a string, it is null",
				"/parameters/e: a parameter must not have a NUL byte", "/parameters/f\x00: the name of a parameter must not have a NUL byte",
				"/parameters/g: a parameter, unless it is a list of strings, must be a string, it is null", "/parameters/c: duplicate member"}},
		{`{"tasks": {"": {}, "\u0000": {}, "` + strings.Repeat("n", 1025) + `": {}, "b": 5, "c": null}}`,
			[]string{"/tasks/: the name of a task is empty", "/tasks/\x00: the name of a task must not have a NUL byte",
				"/tasks/" + strings.Repeat("n", 1025) + ": the name of a task has 1025 bytes, at most 1024 are allowed",
				"/tasks/b: a task must be an object, it is a number", "/tasks/c: a task must be an object, it is null"}},
	} {
		_, problems := Decode([]byte(c.doc))
		same(t, c.doc, problemLines(problems), c.want)
	}
}

func TestProblemsOfATask(t *testing.T) {
	for _, c := range []struct {
		task string
		want []string
	}{
		{`"x": 1, "job": [], "isGenerator": "true"`, []string{`/x: unknown member "x": ` + taskMembers, "/job: job must be an object, it is a list",
			"/isGenerator: isGenerator must be true or false, it is a string"}},
		{`"parents": "a", "children": null`, []string{"/parents: parents must be a list, it is a string", "/children: children must be a list, it is null"}},
		{`"parents": ["", 5, {}, {"task": ""}, {"task": 5}, {"task": "a", "match": "x", "on": 1}, {"task": "a", "match": [1]}]`, []string{
			"/parents/0: the name of a task is empty", "/parents/1: the task of an edge must be a string, it is a number",
			"/parents/2: the task of an edge is missing", "/parents/3/task: the name of a task is empty",
			"/parents/4/task: the task of an edge must be a string, it is a number",
			"/parents/5/match: match must be a list, it is a string", `/parents/5/on: unknown member "on": ` + edgeMembers,
			"/parents/6/match/0: a parameter's name must be a string, it is a number"}},
		{`"maxRetries": -1, "retryIntervalSeconds": 1e10, "retryBackoff": 0.99, "retryMaxIntervalSeconds": "5"`, []string{
			`/maxRetries: maxRetries must be at least 0 and at most 1000000000, it is "-1"`,
			`/retryIntervalSeconds: retryIntervalSeconds must be at least 0 and at most 1000000000, it is "1e10"`,
			`/retryBackoff: retryBackoff must be at least 1 and at most 1000000, it is "0.99"`,
			`/retryMaxIntervalSeconds: retryMaxIntervalSeconds must be a number, it is a string`}},
		{`"maxRetries": 1.5, "retryIntervalSeconds": null, "retryBackoff": 1e999, "retryMaxIntervalSeconds": -1e-30`, []string{
			`/maxRetries: maxRetries must be a whole number`, `/retryIntervalSeconds: retryIntervalSeconds must be a number, it is null`,
			`/retryBackoff: retryBackoff must be at least 1 and at most 1000000, it is "1e999"`,
			`/retryMaxIntervalSeconds: retryMaxIntervalSeconds must be at least 0 and at most 1000000000, it is "-1e-30"`}},
		{`"maxRetries": "1", "retryBackoff": true`, []string{"/maxRetries: maxRetries must be a number, it is a string", "/retryBackoff: retryBackoff must be a number, it is true or false"}},
	} {
		doc := `{"t": {` + c.task + `}}`
		tasks, problems := DecodeTasks([]byte(doc))
		for i := range c.want {
			c.want[i] = "/t" + c.want[i]
		}
		same(t, doc, problemLines(problems), c.want)
		if faulty := strings.Contains(c.task, `"job"`) || strings.Contains(c.task, `"parents"`); len(tasks) != 1 || tasks[0].HasDecodeErrors != faulty {
			t.Errorf("%s: %+v", doc, tasks)
		}
	}
}

func TestProblemsOfAJob(t *testing.T) {
	for _, c := range []struct {
		job  string
		want []string
	}{
		{`"command": "ls -l"`, []string{"/command: command must be a list, it is a string"}},
		{`"command": []`, []string{"/command: command is empty"}},
		{`"command": ["", "", 5, "a\u0000b"]`, []string{"/command/0: the program of command is empty",
			"/command/2: an argument of command must be a string, it is a number", "/command/3: an argument of command must not have a NUL byte"}},
		{`"commandString": ["a"], "workDir": 5, "executor": ""`, []string{"/commandString: commandString must be a string, it is a list",
			"/workDir: workDir must be a string, it is a number", "/executor: executor is empty"}},
		{`"commandString": "\u0000", "workDir": "\u0000", "executor": null`, []string{"/commandString: commandString must not have a NUL byte",
			"/workDir: workDir must not have a NUL byte", "/executor: executor must be a string, it is null"}},
		{`"environment": ["A", "=B", "C=\u0000", 5, "D=1"]`, []string{`/environment/0: environment entry "A" is not of the form K=V`,
			`/environment/1: environment entry "=B" is not of the form K=V`, "/environment/2: an entry of environment must not have a NUL byte",
			"/environment/3: an entry of environment must be a string, it is a number"}},
		{`"environment": {"": "a", "A=B": "c", "C\u0000": "", "D": 1, "E": "\u0000", "D": ""}`, []string{
			"/environment/: the name of an environment variable is empty",
			`/environment/A=B: the name of an environment variable must not have "=" or a NUL byte`,
			"/environment/C\x00: the name of an environment variable must not have \"=\" or a NUL byte",
			"/environment/D: the value of an environment variable must be a string, it is a number",
			"/environment/E: the value of an environment variable must not have a NUL byte", "/environment/D: duplicate member"}},
		{`"environment": "A=1"`, []string{"/environment: environment, unless it is an object, must be a list, it is a string"}},
		{`"cores": "many", "memoryMB": -1, "timeoutSeconds": 0`, []string{`/cores: cores must be a number, it is "many"`,
			`/memoryMB: memoryMB must be at least 0 and at most 1000000000, it is "-1"`, "/timeoutSeconds: timeoutSeconds must be more than 0"}},
		{`"cores": null, "memoryMB": "NaN", "timeoutSeconds": []`, []string{"/cores: cores, unless it is a string, must be a number, it is null",
			`/memoryMB: memoryMB must be a number, it is "NaN"`, "/timeoutSeconds: timeoutSeconds, unless it is a string, must be a number, it is a list"}},
		{`"x": {"a": [{"b": 1, "b": 2}], "a": 1}, "x": 1`, []string{"/x/a/0/b: duplicate member", "/x/a: duplicate member", "/x: duplicate member"}},
	} {
		doc := `{"a/b": {"job": {` + c.job + `}}}`
		_, problems := DecodeTasks([]byte(doc))
		for i := range c.want {
			c.want[i] = "/a~1b/job" + c.want[i]
		}
		same(t, doc, problemLines(problems), c.want)
	}
}

func TestInvalidUTF8(t *testing.T) {
	for _, c := range []struct {
		doc  string
		want []string
	}{
		{"{\"tag\": \"\xff\", \"tasks\": {\"a\": {\"job\": {\"commandString\": \"\xc0\x80\", \"x\": {\"y\": [\"ok\", \"\xed\xa0\x80\"]}}}}}",
			[]string{"/tag: invalid UTF-8", "/tasks/a/job/commandString: invalid UTF-8", "/tasks/a/job/x/y/1: invalid UTF-8"}},
		{`{"tag": "\ud800", "tasks": {"\udc00": {}, "ok": {"job": {"cores": "\ud800"}}}}`,
			[]string{"/tag: invalid UTF-8", "/tasks: invalid UTF-8", "/tasks/ok/job/cores: invalid UTF-8", `/tasks/ok/job/cores: cores must be a number, it is "\\ud800"`}},
		{"{\"\xff\": 1, \"tasks\": {\"a\": {}}}", []string{": invalid UTF-8", "/\ufffd: unknown member \"\ufffd\": " + specMembers}},
		{"{\"tag\": \"\ufffd\", \"tasks\": {\"é\": {}}}", nil},
	} {
		_, problems := Decode([]byte(c.doc))
		same(t, c.doc, problemLines(problems), c.want)
	}
}

func TestDecodeTasks(t *testing.T) {
	tasks, problems := DecodeTasks([]byte("{\"a\": {\"parents\": [\"b\"]}, \"b\": {}}\n"))
	if problems != nil || len(tasks) != 2 || tasks[0].Name != "a" || tasks[0].Parents[0].Task != "b" {
		t.Errorf("%+v, %v", tasks, problems)
	}
	if tasks, problems = DecodeTasks([]byte(`{}`)); len(tasks) != 0 || problems != nil {
		t.Errorf("%+v, %v", tasks, problems)
	}
	_, problems = DecodeTasks([]byte(`[{}] x`))
	same(t, "a list", problemLines(problems), []string{": a generator's output must be an object, it is a list",
		": there is more after the end of the document, at line 1, column 5 (offset 4)"})
}

func TestWrongDefaultsAreReportedOnce(t *testing.T) {
	_, problems := Plan([]byte(`{"jobDefaults": {"command": "x"}, "tasks": {"a": {}, "b": {"parents": ["q"]}}}`), dag.Limits{})
	same(t, "defaults", problemLines(problems), []string{"/jobDefaults/command: command must be a list, it is a string", `/tasks/b/parents/0: unknown task "q"`})
}

// A hostile document must not make answers that are much larger than itself.
func TestProblemsAreBounded(t *testing.T) {
	var members strings.Builder
	for range 5000 {
		members.WriteString(`"x": 1, "y": 2, `)
	}
	long := strings.Repeat("p/", 1<<20)
	doc := `{"` + long + `": {"q": {` + members.String() + `"x": 1}}, "tasks": {"` + long + `": {"` + long + `": null}}}`
	_, problems := Plan([]byte(doc), dag.Limits{})
	if len(problems) != 1001 || !strings.HasPrefix(problems[1000].Message, "and ") {
		t.Errorf("%d problems", len(problems))
	}
	size := 0
	for _, p := range problems {
		size += len(p.Pointer) + len(p.Message)
	}
	if size > 1<<18 {
		t.Errorf("problems of %d bytes", size)
	}
}

func TestManyMembers(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(`{"tasks": {`)
	for i := range 1000 {
		fmt.Fprintf(&doc, `"t%d": {"maxRetries": %d}, `, i, i)
	}
	doc.WriteString(`"t7": {}, "t999": {}, "last": {}}}`)
	s, problems := Decode([]byte(doc.String()))
	same(t, "many", problemLines(problems), []string{"/tasks/t7: duplicate member", "/tasks/t999: duplicate member"})
	for i, task := range s.Tasks[:1000] {
		if task.Name != fmt.Sprint("t", i) || task.Retry.MaxRetries != uint32(i) {
			t.Fatalf("task %d: %+v", i, task)
		}
	}
	if len(s.Tasks) != 1001 {
		t.Errorf("%d tasks", len(s.Tasks))
	}
}

// TestTagsDoNotKeepTheDocument: a run's tags are kept for as long as it is not finished.
func TestTagsDoNotKeepTheDocument(t *testing.T) {
	doc := []byte(`{"tag":"the tag","tags":{"team":"x y"},"tasks":{"a":{"job":{"command":["a"]}}}}`)
	s, problems := Decode(doc)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	// The command is a part of the text: of what is not, the address is elsewhere.
	text := uintptr(unsafe.Pointer(unsafe.StringData(s.Tasks[0].Job.Command[0])))
	for _, kept := range []string{s.Tag, s.Tags[0].Name, s.Tags[0].Value} {
		at := uintptr(unsafe.Pointer(unsafe.StringData(kept)))
		if at+uintptr(len(doc)) > text && at < text+uintptr(len(doc)) {
			t.Errorf("%q lies in the text of the spec", kept)
		}
	}
}

// TestErrorsListValidMembers: what an error lists is what is read.
func TestErrorsListValidMembers(t *testing.T) {
	for list, doc := range map[string]string{specMembers: `{%q: 1}`, taskMembers: `{"tasks": {"a": {%q: {}}}}`, edgeMembers: `{"tasks": {"a": {"parents": [{%q: 1}]}}}`} {
		_, members, _ := strings.Cut(list, " has ")
		for _, name := range strings.Split(members, ", ") {
			_, problems := Decode([]byte(fmt.Sprintf(doc, name)))
			for _, p := range problemLines(problems) {
				if strings.Contains(p, "unknown member") {
					t.Errorf("%s: %s", name, p)
				}
			}
		}
	}
}

// TestReadMembersAreListed: every member that is read is in the list of its object, and so in errors
// and suggestions.
func TestReadMembersAreListed(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "spec.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	lists := map[string]string{"readSpec": specMembers, "readTask": taskMembers, "readEdge": edgeMembers, "readJob": " has " + jobMembers}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || lists[f.Name.Name] == "" {
			continue
		}
		_, members, _ := strings.Cut(lists[f.Name.Name], " has ")
		delete(lists, f.Name.Name)
		read := 0
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CaseClause); ok {
				for _, value := range c.List {
					if name, ok := value.(*ast.BasicLit); ok && name.Kind == token.STRING {
						read++
						if !isListed(members, strings.Trim(name.Value, `"`)) {
							t.Errorf("%s reads %s, which is not in %q", f.Name.Name, name.Value, members)
						}
					}
				}
			}
			return true
		})
		if read == 0 {
			t.Errorf("%s reads no members", f.Name.Name)
		}
	}
	if len(lists) > 0 {
		t.Errorf("spec.go lacks the functions of %v", lists)
	}
}
