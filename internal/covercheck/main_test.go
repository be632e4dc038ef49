package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const profile = `mode: set
m/dag/a.go:1.1,2.2 9 1
m/dag/a.go:3.1,4.2 1 0
m/dag/a.go:3.1,4.2 1 1
m/http/b.go:1.1,2.2 3 1
m/http/b.go:5.1,6.2 1 0
m/bench/c.go:1.1,2.2 1 0
`

func TestPackagesBelowTheirFloorFail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cover.out")
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	linked := []string{"fmt", "m/http", "m/dag"}
	for _, c := range []struct {
		args []string
		err  string // "" = all is well
	}{
		{[]string{"-floor", "75", "-of", "dag=95"}, ""},
		{[]string{"-floor", "76"}, "below the floor: m/http"},
		{[]string{"-floor", "50", "-of", "http=80"}, "below the floor: m/http"},
		{[]string{"-of", "dag"}, "package=percentage"},
		{[]string{"-floor", "50", "-of", "dga=95", "-of", "dag=95"}, "the profile does not have: dga"}, // its floor would be lost
	} {
		var out strings.Builder
		err := run(append(c.args, file), linked, &out)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v: error %v, want %q\n%s", c.args, err, c.err, out.String())
		}
		if c.err == "" && out.String() != " 100.0 %  m/dag\n  75.0 %  m/http\n" {
			t.Errorf("output %q", out.String())
		}
	}
}

func TestBrokenProfilesAreErrors(t *testing.T) {
	for _, text := range []string{"", "mode: set\nx", "mode: set\na.go:1.1,2.2 x 1", "mode: set\nplace 1 1"} {
		if _, err := parseProfile(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
