package specjson

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

// TestWarnings: a member of a job that is not known is told of, with what was probably
// meant; members that are known are not.
func TestWarnings(t *testing.T) {
	for name, want := range map[string]string{
		"timeout": "did you mean timeoutSeconds?", "timeoutSecond": "did you mean timeoutSeconds?", "TimeoutSeconds": "did you mean timeoutSeconds?",
		"timeout_seconds": "did you mean timeoutSeconds?", "timeuotSeconds": "did you mean timeoutSeconds?",
		"retries": "did you mean maxRetries, outside the job?", "maxRetires": "did you mean maxRetries, outside the job?",
		"env": "did you mean environment?", "enviroment": "did you mean environment?", "cmd": "did you mean command?", "comand": "did you mean command?",
		"commandstring": "did you mean commandString?", "script": "did you mean commandString?", "cwd": "did you mean workDir?", "workdir": "did you mean workDir?",
		"mem": "did you mean memoryMB?", "memoryMb": "did you mean memoryMB?", "cpus": "did you mean cores?", "core": "did you mean cores?",
		"dependsOn": "did you mean parents, outside the job?", "partiton": "did you mean partition?",
		"maxRetries": "belongs to the task", "parents": "belongs to the task",
		"foo": `"foo" is kept and has no effect`, "queue": "is kept and has no effect", "": `"" is kept`, strings.Repeat("timeout", 100): "is kept",
	} {
		c := Check([]byte(fmt.Sprintf(`{"tasks":{"a":{"job":{"commandString":"true",%q:3}}}}`, name)), dag.Limits{})
		if c.Plan == nil || len(c.Warnings) != 1 {
			t.Errorf("%s: %+v", name, c)
			continue
		}
		w := c.Warnings[0]
		if !strings.Contains(w.Message, want) || w.Pointer != "/tasks/a/job/"+name || strings.Contains(w.Message, "did you mean") != strings.HasPrefix(want, "did") {
			t.Errorf("%s: %s", w.Pointer, w.Message)
		}
		c.Strict()
		if c.Plan != nil || len(c.Problems) != 1 || c.Problems[0] != w || c.Warnings != nil {
			t.Errorf("%s, strictly: %+v", name, c)
		}
	}
	for name := range strings.SplitSeq(jobMembers, ", ") {
		c := Check([]byte(fmt.Sprintf(`{"jobDefaults":{%q:null}}`, name)), dag.Limits{})
		if len(c.Warnings) > 0 {
			t.Errorf("%s: %v", name, c.Warnings)
		}
	}
}

// TestWarningsAreBounded, whatever the document; a strict refusal has both kinds.
func TestWarningsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"jobDefaults":{"cpus":1},"tasks":{"a":{"job":{"commandString":"true"}`)
	for i := range 200 {
		fmt.Fprintf(&b, `},"t%d":{"job":{"command":["x"],"timeout":1}`, i)
	}
	b.WriteString(`},"z":{"job":{"environment":["novalue"],"command":["x"]}}}}`)
	c := Check([]byte(b.String()), dag.Limits{})
	if n := len(c.Warnings); n != MaxWarnings+1 || c.Warnings[0].Pointer != "/jobDefaults/cpus" || !strings.Contains(c.Warnings[n-1].Message, "101 more") {
		t.Errorf("%d warnings, the last: %v", n, c.Warnings[n-1])
	}
	from, err := CheckFrom(strings.NewReader(b.String()), dag.Limits{})
	if err != nil || fmt.Sprint(from.Warnings) != fmt.Sprint(c.Warnings) {
		t.Errorf("read as a stream: %v %v", err, from.Warnings)
	}
	if c.Strict(); len(c.Problems) != MaxWarnings+2 {
		t.Errorf("strictly: %d problems", len(c.Problems))
	}
	if again := Check([]byte(`{"tasks":{"a":{"job":{"commandString":"true"}}}}`), dag.Limits{}); len(again.Warnings) > 0 {
		t.Errorf("of another document: %v", again.Warnings)
	}
}

func FuzzSuggestMember(f *testing.F) {
	for _, name := range []string{"timeout", "workdir", "", "ü", "retry_interval"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		meant, ofTask := suggestMember(name)
		if meant == "" && ofTask || meant != "" && !isListed(jobMembers+", "+taskOnlyMembers, meant) {
			t.Errorf("%q: %q", name, meant)
		}
		if a, b := editDistance(name, "command"), editDistance("command", name); a != b {
			t.Errorf("%q: %d and %d", name, a, b)
		}
	})
}

// BenchmarkPlanOfUnknownMembers plans a document as each load of its run does: unknown members
// of jobs cost no more than known ones.
func BenchmarkPlanOfUnknownMembers(b *testing.B) {
	for _, member := range []string{"note", "account"} {
		b.Run(member, func(b *testing.B) {
			doc := []byte(`{"tasks":{`)
			for i := range 400 {
				doc = fmt.Appendf(doc, `"t%d":{"job":{"executor":"noop",%q:"x"}},`, i, member)
			}
			doc = append(doc[:len(doc)-1], "}}"...)
			for b.Loop() {
				if plan, problems := Plan(doc, dag.Limits{Executors: []string{"noop"}}); plan == nil {
					b.Fatal(problems)
				}
			}
		})
	}
}
