package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/cluster"
)

// threeNodes is a list of --cluster.
const threeNodes = "n1=10.0.0.1:2504,n2=10.0.0.2:2504,n3=[fe80::1]:2504"

func TestParseNodes(t *testing.T) {
	for text, want := range map[string][]cluster.NodeAddress{
		"":         nil,
		threeNodes: {{Name: "n1", Address: "10.0.0.1:2504"}, {Name: "n2", Address: "10.0.0.2:2504"}, {Name: "n3", Address: "[fe80::1]:2504"}},
		" a=host:1, b=host:2 ,c=host:3,d=host:4,": {{Name: "a", Address: "host:1"}, {Name: "b", Address: "host:2"}, {Name: "c", Address: "host:3"}, {Name: "d", Address: "host:4"}},
	} {
		if got, err := parseNodes(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"10.0.0.1:2504":              `"10.0.0.1:2504" is not NAME=HOST:PORT`,
		"=a:1,n2=b:1,n3=c:1":         `name "": want 1 to 63 lower-case letters`,
		"N1=a:1,n2=b:1,n3=c:1":       `name "N1": want`,
		"n1=a,n2=b:1,n3=c:1":         `node n1: "a" is not host:port`,
		"n1=a:http,n2=b:1,n3=c:1":    `node n1: "a:http": port "http" is not a number`,
		"n1=:2504,n2=b:1,n3=c:1":     `node n1: ":2504" has no host that other nodes can dial`,
		"n1=0.0.0.0:1,n2=b:1,n3=c:1": `node n1: "0.0.0.0:1" has no host`,
		"n1=[::]:1,n2=b:1,n3=c:1":    `node n1: "[::]:1" has no host`,
		"n1=a:0,n2=b:1,n3=c:1":       `node n1: "a:0": other nodes cannot dial port 0`,
		"n1=unix:/x,n2=b:1,n3=c:1":   `node n1: "unix:/x" is not host:port`,
		"n1=a:1,n2=b:1,n1=c:1":       "node n1 is given twice",
		"n1=a:1,n2=b:1,n3=a:1":       "nodes n1 and n3 have the same address a:1",
		"n1=a:1":                     "a cluster begins with at least 3 nodes, not 1: with fewer, it stops when one of them does",
		"n1=a:1,n2=b:1":              "at least 3 nodes, not 2",
	} {
		if got, err := parseNodes(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %s", text, got, err, want)
		}
	}
}

// TestNodeOptionsBelongTogether proves that a mistake is told before the folder is touched or an address
// taken, and by the exit code 2.
func TestNodeOptionsBelongTogether(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--cluster", threeNodes}, "--cluster needs --node, the name of this node: one of n1, n2, n3"},
		{[]string{"--cluster-listen", "a:1"}, "--cluster-listen is for a node of a cluster"},
		{[]string{"--cluster-listen", "a"}, `--cluster-listen: "a" is not host:port`},
		{[]string{"--cluster-listen", "unix:/x"}, `--cluster-listen: "unix:/x" is not host:port`},
		{[]string{"--partitions", "0"}, `--partitions: "0" is not a number from 1 to 4096`},
		{[]string{"--log-copies", "3"}, `--log-copies: "3" is not a number from 1 to 2`},
		{[]string{"--worker-lease", "4s"}, `--worker-lease: 4s is below 5s: a new leader must be able to renew it in time`},
		{[]string{"--tls-dir", "x"}, "--tls-dir is for a node of a cluster"},
		{[]string{"--replace"}, "--replace is for a node of a cluster"},
		{[]string{"--node", "n1"}, "--node needs --cluster"},
		{[]string{"--node", "n4", "--cluster", threeNodes, "--tls-dir", "x"}, "--node: n4 is not in --cluster, which lists n1, n2, n3"},
		{[]string{"--node", "n1", "--cluster", threeNodes}, "--tls-dir is missing: nodes know each other by certificates; `caravan tls node n1`"},
		{[]string{"--node", "n1", "--cluster", threeNodes, "--tls-dir", "x", "--paused"}, "--paused and --resume are for single servers"},
		{[]string{"--node", "n1", "--cluster", threeNodes, "--tls-dir", "x", "--resume"}, "--paused and --resume are for single servers"},
		{[]string{"--node", "n1", "--cluster", threeNodes, "--tls-dir", "x", "--slurm"}, "--slurm and --node cannot be combined"},
		{[]string{"--node", "N1", "--cluster", threeNodes}, `--node: name "N1": want`},
		{[]string{"--cluster", "n1=a:1"}, "--cluster: a cluster begins with at least 3 nodes"},
	} {
		p := newProgram("")
		if code := p.run(append([]string{"serve"}, tc.args...)...); code != exitUsage || !strings.Contains(p.errs.String(), tc.want) {
			t.Errorf("%v: exit %d: %s, want %s", tc.args, code, p.errs, tc.want)
		}
	}
}

// TestNodeNeedsItsOwnCertificate proves that a mistake in the certificates is told before the data folder
// is made.
func TestNodeNeedsItsOwnCertificate(t *testing.T) {
	dir := t.TempDir()
	ca, certificates, data := filepath.Join(dir, "ca"), filepath.Join(dir, "tls"), filepath.Join(dir, "data")
	serve := func(want string) {
		t.Helper()
		p := newProgram("")
		p.OpenServer = openServer
		code := p.run("serve", "--listen", "127.0.0.1:0", "--data", data, "--node", "n1", "--cluster", "n1=127.0.0.1:1,n2=127.0.0.1:2,n3=127.0.0.1:3", "--tls-dir", certificates)
		if code != exitUsage || !strings.Contains(p.errs.String(), want) {
			t.Errorf("exit %d: %s, want %s", code, p.errs, want)
		}
		if _, err := os.Lstat(data); err == nil {
			t.Error("the data folder was made")
		}
	}
	serve("--tls-dir: TLS authority: open " + certificates + "/ca.pem")
	for _, args := range []string{"init --ca-dir " + ca, "worker n1 --ca-dir " + ca + " --tls-dir " + certificates} {
		if p := newProgram(""); p.run(append([]string{"tls"}, strings.Fields(args)...)...) != 0 {
			t.Fatal(p.errs)
		}
	}
	serve("--tls-dir: TLS certificate: open " + certificates + "/node.pem")
	if p := newProgram(""); p.run("tls", "node", "n2", "--ca-dir", ca, "--tls-dir", certificates) != 0 {
		t.Fatal(p.errs)
	}
	serve("has the certificate of node n2, and this is node n1")
	certificates = filepath.Join(data, "tls")
	serve("--tls-dir: " + certificates + " lies in the data folder")
}
