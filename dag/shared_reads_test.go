package dag

import (
	"reflect"
	"slices"
	"sync"
	"testing"
)

// readsOfRun are the methods that several readers of a run that no longer changes may call. The
// comment of Run lists them.
var readsOfRun = map[string]func(r *Run, task uint32){
	"Plan":              func(r *Run, task uint32) { r.Plan().TemplateOf(task) },
	"State":             func(r *Run, _ uint32) { r.State() },
	"StateChanges":      func(r *Run, _ uint32) { r.StateChanges() },
	"Counts":            func(r *Run, _ uint32) { r.Counts() },
	"LastUpdate":        func(r *Run, _ uint32) { r.LastUpdate() },
	"TaskState":         func(r *Run, task uint32) { r.TaskState(task) },
	"Attempt":           func(r *Run, task uint32) { r.Attempt(task) },
	"States":            func(r *Run, task uint32) { r.States(nil, task, 1) },
	"Times":             func(r *Run, task uint32) { r.Times(r.Plan().TemplateOf(task).Index) },
	"Started":           func(r *Run, task uint32) { r.Started(r.Plan().TemplateOf(task).Index) },
	"HasTasksInRetry":   func(r *Run, _ uint32) { r.HasTasksInRetry() },
	"EachLiveTask":      func(r *Run, _ uint32) { r.EachLiveTask(func(uint32, uint32, TaskState) {}) },
	"GrantedAt":         func(r *Run, task uint32) { r.GrantedAt(task) },
	"KillRequested":     func(r *Run, _ uint32) { r.KillRequested() },
	"TaskKillRequested": func(r *Run, task uint32) { r.TaskKillRequested(task) },
	"Allowed":           func(r *Run, _ uint32) { _ = r.Allowed(RunQueued) },
}

// driverMethodsOfRun are the methods for the one goroutine that drives a run.
var driverMethodsOfRun = []string{
	"Init", "Apply", "TakeRecords", "HasRecords", "AppendHeader", "AppendChunk", "DirtyChunks", "ClearDirty", "CheckInvariants",
}

// TestReadingMethodsWriteNothing: several readers share a finished run. The race detector finds a
// method that writes. The comparison finds one that writes a field of Run without the detector.
func TestReadingMethodsWriteNothing(t *testing.T) {
	runType := reflect.TypeFor[*Run]()
	for i := range runType.NumMethod() {
		name := runType.Method(i).Name
		if readsOfRun[name] == nil && !slices.Contains(driverMethodsOfRun, name) {
			t.Errorf("Run.%s is neither for several readers nor for the driver: enter it in one of the lists, and in the comment of Run", name)
		}
	}
	r := NewRun(smallPlan(t), Config{}, 1)
	for task := range r.plan.Tasks {
		r.Apply(Grant{r.plan.TemplateOf(task).Class, 1, 2})
		r.Apply(Finished{task, 1, true, 3, 2, 3})
	}
	if r.State() != RunCompleted {
		t.Fatalf("the run is %s", r.State())
	}
	r.lastTemplate = 0 // the last task is of another template, so a search that is cached is seen
	before := *r
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for task := range r.plan.Tasks {
				for _, read := range readsOfRun {
					read(r, task)
				}
			}
		})
	}
	readers.Wait()
	before.unblock, r.unblock = nil, nil // functions are not comparable
	if !reflect.DeepEqual(&before, r) {
		t.Error("a method that only reads changed the run")
	}
}
