package dag_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
)

// However many templates there are (the index of names changes its form with
// their number), a generated set cannot define a name again.
func TestExtendRefusesEveryNameThatIsThere(t *testing.T) {
	for n := 1; n < 40; n++ {
		var doc strings.Builder
		doc.WriteString(`{"tasks":{"gen":{"job":{"command":["g"]},"isGenerator":true}`)
		for i := 1; i < n; i++ {
			fmt.Fprintf(&doc, `,"t%d":{"job":{"command":["x"]}}`, i)
		}
		doc.WriteString(`}}`)
		plan, problems := specjson.Plan([]byte(doc.String()), dag.Limits{})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for i := 1; i < n; i++ {
			for _, more := range []string{"", `"fresh":{"job":{"command":["x"]}},`} {
				tasks, problems := specjson.DecodeTasks([]byte(fmt.Sprintf(`{%s"t%d":{"job":{"command":["y"]}}}`, more, i)))
				if len(problems) > 0 {
					t.Fatal(problems)
				}
				if _, problems := plan.Extend(0, tasks, func(int) bool { return false }); len(problems) == 0 {
					t.Fatalf("%d templates: t%d was defined again", n, i)
				}
			}
		}
	}
}
