package specjson

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

const seedExample = `{
  "tag": "mediumtest",
  "parameters": { "JOBNO": [ "1", "2" ] },
  "tasks": {
    "simple": {
      "job": { "command": [ "/usr/bin/python3", "script.py", "{{JOBNO}}" ], "cores": "1", "memoryMB": "100" }
    }
  }
}`

func benchmarkPlan(b *testing.B, doc string) {
	b.ReportAllocs()
	b.SetBytes(int64(len(doc)))
	body := []byte(doc)
	for b.Loop() {
		if _, problems := Plan(body, dag.Limits{}); problems != nil {
			b.Fatal(problems)
		}
	}
}

// listOf is a JSON list of n short strings.
func listOf(n int) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf(`"v%d"`, i)
	}
	return "[" + strings.Join(values, ",") + "]"
}

func million() string {
	return `{"parameters":{"A":` + listOf(1000) + `,"B":` + listOf(1000) + `},
		"tasks":{"a":{"job":{"command":["x","{{A}}","{{B}}"],"environment":["Q={{A}}-{{B}}"]}}}}`
}

func BenchmarkSeedExample(b *testing.B) { benchmarkPlan(b, seedExample) }

func BenchmarkProductOf1000000(b *testing.B) { benchmarkPlan(b, million()) }

func BenchmarkListed10000(b *testing.B) {
	tasks := make([]string, 10_000)
	for i := range tasks {
		tasks[i] = fmt.Sprintf(`"task%d":{"job":{"command":["/bin/echo","{{X}}","%d"],"cores":"1"},"parents":["task%d","task%d"]}`, i, i, (i+1)/2-1, i-1)
	}
	tasks[0] = `"task0":{"job":{"command":["x"]}}`
	tasks[1] = `"task1":{"job":{"command":["x"]},"parents":["task0"]}`
	benchmarkPlan(b, `{"parameters":{"X":"v"},"jobDefaults":{"environment":["A=b"]},"tasks":{`+strings.Join(tasks, ",")+`}}`)
}

func BenchmarkTaskInto(b *testing.B) {
	p, problems := Plan([]byte(million()), dag.Limits{})
	if problems != nil {
		b.Fatal(problems)
	}
	b.ReportAllocs()
	var task dag.Task
	i := uint32(0)
	for b.Loop() {
		p.TaskInto(&task, i%p.Tasks)
		i++
	}
}
