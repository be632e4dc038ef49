package dag_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/dagtest"
)

// The initial state of a plan is what a run of it begins with.
func TestInitialState(t *testing.T) {
	specs := map[string]*dag.Spec{}
	for _, shape := range dagtest.Shapes(300) {
		specs[shape.Name] = shape.Spec
	}
	for i := range 500 {
		src := &dagtest.ChoiceSource{}
		for k := range 64 {
			src.Bytes = append(src.Bytes, byte(i*31+k*k*7+k*i))
		}
		name := string(src.Bytes)
		specs[name] = dagtest.RandomSpec(src)
	}
	classes := 0
	for name, spec := range specs {
		plan, problems := dag.NewPlan(spec, dag.Limits{})
		if len(problems) > 0 {
			continue
		}
		const at = 1_645_112_245_996_647_771
		got := plan.InitialState(at)
		run := dag.NewRun(plan, dag.Config{}, at)
		if want := run.TakeRecords(nil); !bytes.Equal(got.Records, want) {
			t.Errorf("%q: records %x, want %x", name, got.Records, want)
		}
		var demands []dag.Demand
		for _, e := range run.Init() {
			demands = append(demands, e.(dag.Demand))
		}
		if !reflect.DeepEqual(got.Demands, demands) || got.Counts != run.Counts() {
			t.Errorf("%q: %+v, want %+v and %v", name, got, demands, run.Counts())
		}
		classes = max(classes, len(demands))
	}
	if classes < 2 {
		t.Error("no spec has ready tasks of two classes")
	}
}
