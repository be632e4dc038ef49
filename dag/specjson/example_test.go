package specjson_test

import (
	"fmt"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

func ExamplePlan() {
	plan, problems := specjson.Plan([]byte(`{
		"parameters": {"OS": ["linux", "plan9"], "ARCH": ["amd64", "arm64"]},
		"tasks": {
			"build": {"job": {"command": ["make", "GOOS={{OS}}", "GOARCH={{ARCH}}"]}},
			"test": {"job": {"command": ["./test", "{{OS}}"]}, "parents": [{"task": "build", "match": ["OS"]}]}
		}
	}`), dag.Limits{})
	if problems != nil {
		fmt.Println(problems)
		return
	}
	for task := range plan.Tasks {
		fmt.Println(plan.TaskName(task), plan.Task(task).Command)
	}
	// Output:
	// build_0 [make GOOS=linux GOARCH=amd64]
	// build_1 [make GOOS=plan9 GOARCH=amd64]
	// build_2 [make GOOS=linux GOARCH=arm64]
	// build_3 [make GOOS=plan9 GOARCH=arm64]
	// test_0 [./test linux]
	// test_1 [./test plan9]
}

func ExamplePlan_problems() {
	_, problems := specjson.Plan([]byte(`{
		"tasks": {
			"a": {"job": {"command": ["echo", "{{WHO}}"]}, "parents": ["b", "x"]},
			"b": {"job": {"comand": ["true"]}, "parents": ["a"], "retries": 3}
		}
	}`), dag.Limits{})
	for _, p := range problems {
		fmt.Println(p.Pointer, p.Message)
	}
	// Output:
	// /tasks/b/retries unknown member "retries": a task has job, parents, children, maxRetries, retryIntervalSeconds, retryBackoff, retryMaxIntervalSeconds, isGenerator
	// /tasks/a/job/command/1 unknown parameter "WHO"
	// /tasks/b/job neither command nor commandString is given
	// /tasks/a/parents/1 unknown task "x"
	// /tasks/a the tasks depend on each other: a -> b -> a
}
