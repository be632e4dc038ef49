package specjson

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/caravan-dag/caravan/dag"
)

// planInParts is PlanFrom with parts of a few bytes.
func planInParts(doc []byte, limits dag.Limits, part int) (*dag.Plan, dag.Problems) {
	d := newStream(strings.NewReader(string(doc)))
	d.text.buf = make([]byte, part)
	spec, problems := d.readDocument()
	return planSpec(spec, problems, limits)
}

// checkStream fails when a document that is read as a stream is not what it is as a whole.
func checkStream(t *testing.T, doc []byte, limits dag.Limits) {
	t.Helper()
	want, problems := Plan(doc, limits)
	for _, part := range []int{1, 7, 64, partBytes} {
		got, found := planInParts(doc, limits, part)
		if !reflect.DeepEqual(problemLines(found), problemLines(problems)) {
			t.Fatalf("%.300q in parts of %d: problems\n got %q\nwant %q", doc, part, problemLines(found), problemLines(problems))
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("%.300q in parts of %d: plan %v, want %v", doc, part, got, want)
		}
		if got == nil {
			continue
		}
		if g, w := planText(got), planText(want); g != w {
			t.Fatalf("%.300q in parts of %d: plan\n got %s\nwant %s", doc, part, g, w)
		}
	}
}

// planText is all that a plan says.
func planText(p *dag.Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %v %v %d tasks, %d sets\n", p.Tag, p.Tags, p.Parameters, p.Classes, p.Tasks, p.Sets)
	var scratch dag.JobBuffer
	for _, t := range p.Templates {
		fmt.Fprintf(&b, "%d %q %d %d %+v", t.Index, t.Name, t.Base, t.Count, *t.Traits)
		for _, list := range [][]dag.Edge{t.Parents, t.Children} {
			b.WriteString(" [")
			for _, e := range list {
				fmt.Fprintf(&b, " %d %v", e.Template, e.ViaGenerator)
				if e.Match != nil {
					fmt.Fprintf(&b, " %+v", *e.Match)
				}
			}
			b.WriteString("]")
		}
		fmt.Fprintf(&b, " %+v\n", *p.Job(t, &scratch))
	}
	var task dag.Task
	for i := range p.Tasks {
		p.TaskInto(&task, i)
		at, ok := p.FindTask(task.Name)
		fmt.Fprintf(&b, "%d %q %q %q %q %q %v %d %v\n", i, task.Name, task.Command, task.CommandString, task.Environment, task.WorkDir, task.Timeout, at, ok)
	}
	return b.String()
}

func TestStreamEqualsDocumentInMemory(t *testing.T) {
	docs := append([]string{
		``, ` `, `[]`, `{`, `{"tasks":{}}`, `{"tasks":{"a":{}}} x`, "{\n\"tasks\":{\n\"a\":\n{]", `{"tasks":{"a":null,"b":7}}`,
		`{"tasks":{"a":{"job":{"command":["x"],"q":{"deep":[1,{"y":null,"y":2}]},"r":[ 1 , 2 ]}},"a":{}}}`,
		`{"jobDefaults":{"cores":-1,"x":{"a":1}},"tasks":{"a":{"job":{"executor":"noop","x":[1]}}}}`,
		`{"jobDefaults":{"command":["d","{{A}}"],"environment":["D={{B}}"],"workDir":"/d","o":1,"p":[2]},
		  "tasks":{"a":{},"b":{"job":{"command":[],"o":3}},"c":{"job":{"commandString":"{{A}}{{C}}","environment":{"X":"{{A}}"},"timeoutSeconds":"2.5","cores":"2","memoryMB":7}}},
		  "parameters":{"A":["1","2"],"B":"é\u00e9","C":[]}}`,
		`{"jobDefaults":{"command":["d","{{A}}"],"environment":["D={{B}}"],"workDir":"/d","o":1,"p":[2]},
		  "tasks":{"a":{"children":["c"]},"b":{"job":{"command":["x"],"o":3},"parents":["a",{"task":"c","match":["A"]}]},"c":{"job":{"commandString":"{{A}}{{C}}","environment":{"X":"{{A}}"},"timeoutSeconds":"2.5","cores":"2","memoryMB":7},
		  "maxRetries":3,"retryIntervalSeconds":0.5,"retryBackoff":2,"retryMaxIntervalSeconds":9,"isGenerator":false}},
		  "parameters":{"A":["1","2"],"B":"é\u00e9","C":["x","y"]}}`,
		"{\"tasks\":{\"a\xff\":{\"job\":{\"command\":[\"\\ud800\"]}}}}",
		`{"tasks":{"a":{"job":{"command":["x"]},"parents":["b"]},"b":{"job":{"command":["x"]},"parents":["a","c","",7]}}}`,
		`{"tasks":{"a":{"job":{"executor":"noop","cores":9}},"a_0":{"isGenerator":true,"job":{"command":["x","{{A}}"]}},"a_0_0":{}},"parameters":{"A":["1"]}}`,
		seedExample,
	}, seeds...)
	for _, doc := range docs {
		checkStream(t, []byte(doc), dag.Limits{MaxTasks: 1000, MaxCPUMillis: 8000})
	}
}

// Many tasks: chunks and the index of names grow, and sets come behind the list.
func TestStreamOfManyTasks(t *testing.T) {
	const n = 5_000
	plan, problems, err := PlanFrom(listedDoc(n), dag.Limits{})
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	checkPlan(t, plan)
	for i := uint32(0); i < n; i += 7 {
		task := plan.Task(i)
		if want := fmt.Sprintf("/data/part-%07d.parquet", i); task.Command[3] != want || task.Name != fmt.Sprintf("task-%07d", i) {
			t.Fatalf("task %d is %+v", i, task)
		}
	}
	set, problems := DecodeTasks([]byte(`{"task-0000007":{"job":{"command":["x"]}}}`))
	if _, clash := plan.Extend(n, set, func(int) bool { return false }); len(problems) > 0 || len(clash) == 0 {
		t.Fatalf("%v: a listed name was generated again", problems)
	}
	for k := range 20 {
		set, _ := DecodeTasks([]byte(fmt.Sprintf(`{"new%d":{"job":{"command":["x"]},"parents":["task-0000001"]}}`, k)))
		next, problems := plan.Extend(n, set, func(int) bool { return false })
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		checkPlan(t, next)
		plan = next
	}
}

// listedDoc is a document of n different tasks and a generator.
func listedDoc(n int) io.Reader {
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, 64<<10)
		b.WriteString(`{"tasks":{`)
		for i := range n {
			fmt.Fprintf(b, `"task-%07d":{"job":{"command":["/usr/bin/python3","/srv/sweep/simulate.py","--input","/data/part-%07d.parquet","--seed","%d"],"environment":["STEP=%d"],"cores":"1","memoryMB":"100"}`, i, i, i*7919, i%97)
			if i > 0 && i%10 == 0 {
				fmt.Fprintf(b, `,"parents":["task-%07d"]`, i-1)
			}
			b.WriteString("},\n")
		}
		b.WriteString(`"gen":{"isGenerator":true,"job":{"command":["g"]}}}}`)
		b.Flush()
		w.Close()
	}()
	return r
}

// What a listed task costs: its texts, here 140 bytes of 196, and so many beside them.
func TestMemoryOfAListedTask(t *testing.T) {
	if testing.Short() {
		t.Skip("a large document, to measure memory")
	}
	const n, texts, beside = 100_000, 140, 150
	before := liveHeap()
	plan, problems, err := PlanFrom(listedDoc(n), dag.Limits{})
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	each := float64(liveHeap()-before) / n
	t.Logf("%.0f bytes a task", each)
	if each > texts+beside {
		t.Errorf("a listed task takes %.0f bytes, at most %d are wanted", each, texts+beside)
	}
	runtime.KeepAlive(plan)
}

func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestStreamErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, text := range []string{``, `{"tasks":{"a":{"job":{"comm`, seedExample} {
		plan, problems, err := PlanFrom(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)), dag.Limits{})
		if !errors.Is(err, broken) || plan != nil || problems != nil {
			t.Errorf("%q: %v %v %v", text, plan, problems, err)
		}
	}
}

func BenchmarkStreamOfListed(b *testing.B) {
	const n = 100_000
	doc, err := io.ReadAll(listedDoc(n))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if _, problems, err := PlanFrom(strings.NewReader(string(doc)), dag.Limits{}); problems != nil || err != nil {
			b.Fatal(problems, err)
		}
	}
}
