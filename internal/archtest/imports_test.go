package archtest

import (
	"slices"
	"strings"
	"testing"
)

// may says which packages of this module a package imports, beside the standard
// library. A package that is not here fails the test. "*" allows everything.
var may = map[string][]string{
	"dag":                     {},
	"dag/specjson":            {"dag"},
	"messages":                {"dag"},
	"persistence":             {"dag", "messages", "internal/idtable", "internal/lengthprefix", "internal/rowdigest", "internal/vfs", "persistence/commitlog", "persistence/badgerguard"},
	"persistence/badgerguard": {"internal/vfs"},
	"executor":                {"executor/procfs", "messages", "internal/outputs", "internal/vfork"},
	"executor/fleet":          {"executor", "executor/lease", "executor/lifecycle", "executor/workerpb", "messages", "internal/outputs"},
	"executor/lease":          {},
	"executor/lifecycle":      {},
	"executor/procfs":         {},
	"executor/remote":         {"executor", "executor/fleet", "executor/lifecycle", "executor/procfs", "executor/worker", "executor/workerpb", "messages", "internal/outputs", "internal/vfs"},
	"executor/slurm":          {"executor", "messages", "internal/outputs", "internal/vfs"},
	"executor/worker":         {"executor", "executor/lease", "executor/lifecycle", "executor/procfs", "executor/workerpb", "messages", "internal/outputs", "internal/vfs"},
	"executor/workerpb":       {"executor", "messages"},
	"internal/idtable":        {},
	"internal/lengthprefix":   {},
	"internal/backup":         {"internal/lengthprefix", "internal/rowdigest"},
	"internal/rowdigest":      {},
	"internal/clustertls":     {"http/access", "internal/vfs"},
	"internal/datafolder":     {"internal/vfs"},
	"internal/outputs":        {"messages", "internal/vfs"},
	"internal/vfs":            {},
	"internal/vfork":          {},
	"actors":                  {"actors/query", "actors/replay", "actors/scheduler", "actors/watch", "dag", "dag/specjson", "messages", "persistence", "executor", "internal/idtable", "internal/outputs"},
	"http":                    {"dag", "dag/specjson", "http/access", "messages"},
	"http/access":             {"internal/vfs", "messages"},
	"client":                  {},
	"cluster":                 {"actors", "cluster/raftlog", "http", "internal/clustertls", "internal/vfs", "messages", "persistence"},
	"cluster/raftlog":         {"internal/vfs"},
	"cluster/router":          {"cluster", "cluster/raftlog", "dag", "http", "internal/clustertls", "messages"},
	"cmd/caravan":             {"*"},

	"actors/query":     {"actors/replay", "actors/watch", "dag", "messages", "persistence", "internal/idtable", "internal/outputs"},
	"actors/replay":    {"dag", "dag/specjson", "messages", "persistence"},
	"actors/scheduler": {"dag", "messages", "internal/idtable"},
	"actors/watch":     {"dag", "messages"},

	// Longer names stand apart: gofmt aligns each block by itself.
	"persistence/commitlog": {"internal/lengthprefix", "internal/vfs"},

	// Not part of the binary.
	"bench":               {"client", "internal/testenv"},
	"internal/archtest":   {},
	"internal/covercheck": {},
	"internal/faults":     {"internal/vfs"},
	"internal/model":      {},
	"internal/e2e":        {"client", "internal/testenv", "internal/e2e/e2etest"},
	"internal/testenv":    {},

	"internal/clustertest/history": {},
	"internal/clustertest/network": {"internal/testenv"},
}

// outside says which modules a package imports. A package that is not here
// imports the standard library only; "*" allows everything.
var outside = map[string][]string{
	"dag/specjson":            {"github.com/go-json-experiment/json"},
	"persistence":             {"*"},
	"persistence/badgerguard": {"*"},
	"executor":                {"golang.org/x/sys"},
	"executor/fleet":          {"golang.org/x/sys", "google.golang.org/grpc"},
	"executor/lease":          {"golang.org/x/sys"},
	"executor/procfs":         {"golang.org/x/sys"},
	"executor/remote":         {"golang.org/x/sys", "google.golang.org/grpc"},
	"executor/slurm":          {"golang.org/x/sys"},
	"executor/worker":         {"golang.org/x/sys", "google.golang.org/grpc"},
	"executor/workerpb":       {"github.com/planetscale/vtprotobuf", "google.golang.org/grpc", "google.golang.org/protobuf"},
	"actors":                  {"*"},
	"http":                    {"*"},
	"client":                  {"github.com/go-json-experiment/json"},
	"cluster":                 {"github.com/prometheus/client_golang"},
	"cluster/raftlog":         {"github.com/hashicorp/go-hclog", "github.com/hashicorp/raft", "github.com/hashicorp/raft-wal"},
	"cmd/caravan":             {"*"},
	"bench":                   {"golang.org/x/sys", "gonum.org/v1/plot"},

	"internal/clustertest/history": {"github.com/anishathalye/porcupine", "golang.org/x/sys"},
	"internal/clustertest/network": {"golang.org/x/sys"},

	"internal/datafolder": {"golang.org/x/sys"},
	"internal/faults":     {"golang.org/x/sys"},
	"internal/outputs":    {"golang.org/x/sys"},
	"internal/vfork":      {"golang.org/x/sys"},
	"internal/vfs":        {"golang.org/x/sys"},
}

// pure is what package dag and package scheduler may use of the standard library: nothing that reads a
// clock, a file, the network or randomness, nothing that synchronises. (The seed of
// hash/maphash is random, as that of the language's own maps is.)
var pure = []string{
	"bytes", "cmp", "container/heap", "encoding/binary", "errors", "fmt", "hash/crc32", "hash/maphash", "iter", "maps", "math", "math/bits",
	"slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
}

// helper reports whether a package is a test helper (…test, internal/testenv), which may import what
// it tests and the testing packages.
func helper(short string) bool {
	return strings.HasSuffix(short, "test") && short != "internal/archtest" || short == "internal/testenv"
}

func TestImportsOfTheModule(t *testing.T) {
	for _, p := range packages(t) {
		short := p.short()
		if helper(short) && may[short] == nil {
			continue
		}
		allowed, known := may[short]
		if !known {
			t.Errorf("package %s is in no rule: enter it in imports_test.go", short)
			continue
		}
		if slices.Contains(allowed, "*") {
			continue
		}
		for _, imp := range p.Imports {
			own, ok := strings.CutPrefix(imp, module+"/")
			if ok && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s; it may import %v", short, own, allowed)
			}
		}
	}
}

func TestImportsFromOutside(t *testing.T) {
	standard := map[string]bool{}
	for _, p := range list(t, "std") {
		standard[p.ImportPath] = true
	}
	for _, p := range packages(t) {
		short := p.short()
		allowed := outside[short]
		if helper(short) || slices.Contains(allowed, "*") {
			continue
		}
		for _, imp := range p.Imports {
			if standard[imp] || imp == "C" || strings.HasPrefix(imp, module) {
				continue
			}
			if !slices.ContainsFunc(allowed, func(m string) bool { return imp == m || strings.HasPrefix(imp, m+"/") }) {
				t.Errorf("%s imports %s; from outside it may import %v", short, imp, allowed)
			}
		}
	}
}

// TestRaftHasOneImporter keeps the libraries of the replicated log in one package, whose doc.go says what
// it relies on.
func TestRaftHasOneImporter(t *testing.T) {
	for _, p := range packages(t) {
		if p.short() == "cluster/raftlog" {
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if imp == "github.com/hashicorp/raft" || strings.HasPrefix(imp, "github.com/hashicorp/raft-") {
				t.Errorf("%s imports %s; only cluster/raftlog may", p.short(), imp)
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, p := range list(t, "./dag", "./actors/scheduler") {
		for _, imp := range p.Imports {
			if !slices.Contains(pure, imp) && !strings.HasPrefix(imp, module) { // the module's own: see may
				t.Errorf("%s imports %s; it may import only %s", p.short(), imp, strings.Join(pure, ", "))
			}
		}
	}
}

func TestTheBinaryHoldsNoTestCode(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/caravan") {
		if !strings.HasPrefix(p.ImportPath, module) {
			continue
		}
		if helper(p.short()) {
			t.Errorf("the binary is linked with %s", p.ImportPath)
		}
		for _, imp := range p.Imports {
			if imp == "testing" || strings.HasPrefix(imp, "testing/") {
				t.Errorf("%s, of the binary, imports %s", p.ImportPath, imp)
			}
		}
	}
}
