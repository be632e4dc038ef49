package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/datafolder"
)

// TestClusterCertificates creates an authority and the certificates of its members, as a user would.
func TestClusterCertificates(t *testing.T) {
	t.Chdir(t.TempDir())
	run := func(args string) string {
		t.Helper()
		p := newProgram("")
		if code := p.run(append([]string{"tls"}, strings.Fields(args)...)...); code != exitCompleted || p.out.String() != "" {
			t.Fatalf("tls %s: exit %d: %s%s", args, code, p.out, p.errs)
		}
		return p.errs.String()
	}
	if got := run("init"); !strings.Contains(got, "authority created in ./caravan-ca, valid until 20") {
		t.Error(got)
	}
	run("init --ca-dir second --lifetime 30d")
	if got := run("node n1 --tls-dir n1"); !strings.HasPrefix(got, "certificate of node n1 written to n1, valid until 20") {
		t.Error(got)
	}
	run("node n1 --tls-dir n1 --lifetime 90d") // a renewal
	run("worker w1 --tls-dir w1")
	for dir, role := range map[string]clustertls.Role{"n1": clustertls.Node, "w1": clustertls.Worker} {
		if c, err := clustertls.Open(dir, role, newLogger(newBuffer(), "text", 0)); err != nil || c.Self() != (clustertls.Identity{Role: role, Name: dir}) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	data, err := datafolder.Open("data", datafolder.Options{})
	if err == nil {
		err = data.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                                        "", // the help
		"int":                                     `unknown command "int": did you mean init?`,
		"init x":                                  "init takes no arguments, not 1 argument",
		"init":                                    "caravan-ca/ca-key.pem exists already",
		"init --ca-dir third --lifetime 1s":       "--lifetime: 1s is too short",
		"init --ca-dir third --lifetime year":     `"year" is not a duration`,
		"init --ca-dir data/ca":                   "lies in the data folder",
		"node --tls-dir x":                        "node takes one NAME, not 0 arguments",
		"node n2":                                 "--tls-dir is missing: the folder for the certificate of node n2",
		"node N2 --tls-dir x":                     `name "N2": want 1 to 63 lower-case letters`,
		"node n2 --tls-dir n1":                    "n1/node.pem is the certificate of node n1",
		"node n1 --tls-dir n1 --ca-dir second":    "n1/ca.pem has another authority than second/ca.pem",
		"node n2 --tls-dir n2 --ca-dir nowhere":   "open nowhere/ca.pem",
		"node n2 --tls-dir data/tls":              "lies in the data folder",
		"worker w2 --tls-dir w2 --lifetime -30d":  "is not a duration",
		"worker w2 --tls-dir w1 --ca-dir ./n1":    "n1/ca-key.pem",
		"worker w2 --tls-dir w1":                  "w1/worker.pem is the certificate of worker w1",
		"node n2 --tls-dir caravan-ca/ca.pem/sub": "not a directory",
	} {
		p := newProgram("")
		code := p.run(append([]string{"tls"}, strings.Fields(args)...)...)
		if want == "" {
			if code != exitCompleted || !strings.Contains(p.out.String(), "init") {
				t.Errorf("tls: exit %d: %s%s", code, p.out, p.errs)
			}
			continue
		}
		if code != exitUsage || !strings.Contains(p.errs.String(), want) {
			t.Errorf("tls %s: exit %d: %s, want %s", args, code, p.errs, want)
		}
	}
	for _, name := range []string{"third", "n2", "x", "data/tls", "w2"} {
		if _, err := os.Lstat(filepath.FromSlash(name)); err == nil {
			t.Errorf("%s was created", name)
		}
	}
}
