package dag_test

import (
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/dagtest"
)

var (
	rounds = flag.Int("dag.rounds", 0, "random scripts to play against the oracle; 0 = as many as a few seconds allow")
	seed   = flag.Uint64("dag.seed", 1, "seed of the first random script")
	script = flag.String("dag.script", "", "one script to play, as a failure printed it")
)

// playScript plays a script. A script that fails is made as small as possible before it is reported.
func playScript(t *testing.T, s dagtest.Script) *dagtest.PlayLog {
	t.Helper()
	log, err := dagtest.PlayScript(s, true)
	if err == nil {
		return log
	}
	s = dagtest.ShrinkScript(s, 10_000, func(s dagtest.Script) bool {
		_, err := dagtest.PlayScript(s, true)
		return err != nil
	})
	log, err = dagtest.PlayScript(s, false)
	t.Fatalf("%s\n=> %v\nagain: go test ./dag -run TestScript -dag.script=%s", strings.Join(log.Lines, "\n"), err, s)
	return nil
}

// TestRandomRuns plays random scripts on random specs against the oracle.
func TestRandomRuns(t *testing.T) {
	budget := 5 * time.Second
	if testing.Short() {
		budget = time.Second
	}
	begin, played, events := time.Now(), 0, 0
	sum := dagtest.PlayLog{}
	finals := map[dag.RunState]int{}
	for i := 0; i < *rounds || *rounds == 0 && time.Since(begin) < budget; i++ {
		log := playScript(t, dagtest.RandomScript(*seed+uint64(i), 20+i%10*30))
		played++
		events += log.Events
		sum.Sets += log.Sets
		finals[log.Final]++
		for k, n := range log.Kinds {
			sum.Kinds[k] += n
		}
	}
	t.Logf("%d scripts, %d events, %d generated sets, ends %v, operations %v", played, events, sum.Sets, finals, sum.Kinds)
	if sum.Sets == 0 && played > 100 {
		t.Error("no generated set was taken")
	}
}

// TestScript plays the script of -dag.script; without it, one that does a bit of everything.
func TestScript(t *testing.T) {
	s := dagtest.RandomScript(7, 200)
	if *script != "" {
		var err error
		if s, err = dagtest.ParseScript(*script); err != nil {
			t.Fatal(err)
		}
	}
	playScript(t, s)
}

// FuzzRun reads its bytes as a script.
func FuzzRun(f *testing.F) {
	for i := range uint64(20) {
		f.Add(dagtest.RandomScript(i, 10+int(i)*4).Encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) { playScript(t, dagtest.DecodeScript(b)) })
}

// TestScriptsThatOnceFailed plays scripts in which a run once differed from its oracle.
func TestScriptsThatOnceFailed(t *testing.T) {
	for what, text := range map[string]string{
		"a generated task matched with parents that were COMPLETED":      "6100be3a0000c90000000000000000000000000000000000690000000000000000000000000000000000e7efc6004b000000000039e2000000a4867700000000000091000000000000006e00ce000065000000dd0000000000003200002600000013000000020000001ac402000002000002000000282102f81602584502a1f1024386",
		"a generated parent matched with what waits for the generator":   "5c027d000000fb25ba000000000000a50038000000000000000000b32700000000b100000000000000000000000000000000000000000000000000b3000000000000000000000000d7000000000000000000000000490000000000007400c63f030000020000020000030000009c2f020000025ee8",
		"a parent generated for a task whose attempt was revoked before": "0e0000e30000da00009b00000000fe000d8f0100000b00000330a80589470240f2",
	} {
		t.Run(what, func(t *testing.T) {
			s, err := dagtest.ParseScript(text)
			if err != nil {
				t.Fatal(err)
			}
			playScript(t, s)
		})
	}
}
