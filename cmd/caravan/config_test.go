package main

import (
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

var eight = machine{cpus: 8, memoryMB: 16000}

func resolveArgs(t testing.TB, env map[string]string, args ...string) (Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	all := serverOptions(eight)
	addOptionFlags(flags, all)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return resolveConfig(flags, func(name string) (string, bool) { v, ok := env[name]; return v, ok }, all)
}

func TestDefaultConfiguration(t *testing.T) {
	c, err := resolveArgs(t, nil)
	want := Config{Listen: []string{"127.0.0.1:2503"}, Data: "./caravan-data", CPUMillis: 8000, MemoryBytes: 16000 << 20,
		KillGrace: 5 * time.Second, MaxTasks: 10_000_000, MaxBody: 256 << 20, RetainKeys: 24 * time.Hour, SlurmJobs: 1000, WorkerLease: 5 * time.Minute, LogCopies: 2, LogLevel: slog.LevelInfo, LogFormat: "text"}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, %v, want %+v", c, err, want)
	}
}

// For every option the flag comes before the environment, the file and the default.
func TestConfigurationPrecedence(t *testing.T) {
	values := map[string][3]string{ // by flag, environment, file
		"listen": {"a:1", "b:2,unix:/x", "[c:3, d:4]"}, "data": {"f", "e", "c"}, "cores": {"1", "2", "3"}, "memory-mb": {"10", "20", "30"},
		"kill-grace": {"1s", "2s", "3s"}, "max-tasks": {"1", "2", "3"}, "max-body": {"1KiB", "2KiB", "3KiB"},
		"retain-runs": {"1", "2", "3"}, "retain-age": {"1d", "2d", "3d"}, "retain-keys": {"1d", "2d", "3d"}, "log-level": {"debug", "warn", "error"},
		"log-format": {"json", "text", "json"}, "slurm": {"on", "off", "yes"}, "slurm-partition": {"a", "b", "c"}, "slurm-jobs": {"1", "2", "3"},
		"enforce-memory": {"on", "off", "yes"},
		"allow-host":     {"a", "b,c", "[d, e.example]"}, "cors-origin": {"https://a", "https://b, http://c:1", "[https://d]"},
		"verify":         {"off", "full", "off"},
		"max-per-client": {"1", "2", "3"},
		"paused":         {"on", "off", "yes"}, "resume": {"on", "off", "yes"},
		"token-file": {"a", "b", "c"}, "tls-cert": {"a", "b", "c"}, "tls-key": {"a", "b", "c"}, "tls-client-ca": {"a", "b", "c"},
		"insecure": {"on", "off", "yes"}, "audit-log": {"a", "b", "c"},
		"worker-lease": {"5s", "6m", "1h"}, "log-copies": {"1", "2", "1"}, "replace": {"on", "off", "yes"}, "node": {"a", "b", "c"}, "partitions": {"1", "2", "3"}, "cluster-listen": {"a:1", "b:2", "c:3"}, "tls-dir": {"a", "b", "c"},
		"cluster": {"a=h:1,b=h:2,c=h:3", "a=i:1,b=i:2,c=i:3", "[a=j:1, b=j:2, c=j:3]"},
	}
	for _, o := range serverOptions(eight) {
		v, ok := values[o.name]
		if !ok {
			t.Errorf("option %s is not tested", o.name)
			continue
		}
		path := file(t, "caravan.yaml", "# a comment\n"+o.name+": "+v[2]+"\n")
		for i, source := range []string{"flag", "environment", "file"} {
			env := map[string]string{envConfig: path}
			var args []string
			if i <= 1 {
				env[o.env()] = v[1]
			}
			if i == 0 {
				args = []string{"--" + o.name + "=" + v[0]}
			}
			got, err := resolveArgs(t, env, args...)
			want := Config{}
			for _, d := range serverOptions(eight) {
				_ = d.set(&want, d.initial)
			}
			_ = o.set(&want, strings.Trim(v[i], "[]")) // brackets of a YAML sequence
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s by %s: got %+v, %v, want %+v", o.name, source, got, err, want)
			}
		}
	}
}

func TestConfigurationErrorsNameTheSource(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		args []string
		file string
		want string
	}{
		{nil, []string{"--cores", "none"}, "", `--cores: "none" is not a positive number`},
		{nil, []string{"--cores", "0"}, "", `--cores: "0" is not a positive number`},
		{nil, []string{"--cores", "NaN"}, "", `is not a positive number`},
		{map[string]string{"CARAVAN_KILL_GRACE": "5"}, nil, "", `CARAVAN_KILL_GRACE: "5" is not a duration`},
		{nil, []string{"--kill-grace", "-1s"}, "", `is not a duration`},
		{nil, []string{"--retain-age", "xd"}, "", `is not a duration`},
		{nil, []string{"--listen", "localhost"}, "", `--listen: "localhost" is not host:port`},
		{nil, []string{"--listen", "localhost:http"}, "", `port "http" is not a number`},
		{nil, []string{"--listen", "localhost:+80"}, "", `port "+80"`},
		{nil, []string{"--listen", "localhost:070"}, "", `must be written without sign and leading zeros`},
		{nil, []string{"--data", " "}, "", `--data: must not be empty`},
		{nil, []string{"--max-tasks", "0"}, "", `"0" is not a number from 1 to`},
		{nil, []string{"--max-body", "1 parsec"}, "", `is not a size`},
		{nil, []string{"--max-body", "0"}, "", `is not a size`},
		{nil, []string{"--retain-runs", "-1"}, "", `is not a number from 0`},
		{nil, []string{"--slurm=maybe"}, "", `--slurm: "maybe" must be on or off`},
		{nil, []string{"--slurm-jobs", "0"}, "", `--slurm-jobs: "0" is not a number from 1`},
		{nil, []string{"--log-level", "loud"}, "", `must be one of debug, info, warn, error`},
		{nil, []string{"--log-format", "xml"}, "", `must be one of text, json`},
		{nil, nil, "cores: 2\nfrob: 1\n\nCORES: 3\n", `line 2, column 1: unknown key "frob"; line 4, column 1: unknown key "CORES": did you mean cores?`},
		{nil, nil, "kil-grace: 2s\n", `c.yaml: line 1, column 1: unknown key "kil-grace": did you mean kill-grace?`},
		{nil, nil, "cores: 2\ncores: 3\n", `line 2, column 1: mapping key "cores" already defined at [1:1]`},
		{nil, nil, "cores: [1]\n", `line 1, column 1: key "cores" needs one value`},
		{nil, nil, "cores:\n", `line 1, column 1: key "cores" needs one value`},
		{nil, nil, "cores: *x\n", `line 1, column 1: key "cores" needs one value`},
		{nil, nil, "listen: [{a: b}]\n", `line 1, column 1: key "listen" needs a list of plain values`},
		{nil, nil, "- a\n", "line 1, column 1: expected `name: value` lines"},
		{nil, nil, "a: b: c\n", `c.yaml: line 1, column 4: mapping value is not allowed in this context`},
		{nil, nil, "cores: 2\n---\ncores: 3\n", `line 2, column 1: a second document begins`},
		{nil, nil, "cores: 2\nmax-tasks: many\n", `c.yaml: line 2, column 12: max-tasks: "many" is not a number`},
		{map[string]string{envConfig: "/no/such/file"}, nil, "", `configuration: open /no/such/file`},
		{map[string]string{envConfig: "/no/such/file"}, []string{"--config", "/nor/this"}, "", `configuration: open /nor/this`},
	} {
		args := tc.args
		if tc.file != "" {
			args = append(args, "--config", file(t, "c.yaml", tc.file))
		}
		_, err := resolveArgs(t, tc.env, args...)
		if err == nil || !strings.Contains(err.Error(), tc.want) || exitCode(err) != exitUsage {
			t.Errorf("%v %v %q: got %v, want %s", tc.env, tc.args, tc.file, err, tc.want)
		}
	}
}

func TestOptionValues(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "512KiB": 512 << 10, "1.5 MiB": 3 << 19, "2kB": 2000, "1GiB": 1 << 30, "10b": 10} {
		if got, err := parseSize(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %d, %v", s, got, err)
		}
	}
	for s, want := range map[string]time.Duration{"30d": 720 * time.Hour, "0": 0, "1.5h": 90 * time.Minute, "0.5d": 12 * time.Hour} {
		if got, err := parseDuration(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
	for s, want := range map[string]int64{"0.5": 500, "2": 2000, "1e3": 1_000_000} {
		if got, err := parseThousandths(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	for _, seed := range []string{"", "# nothing\n", "cores: 2\nlog-level: warn\n", "cores: [1]\n", "a: b: c", "- x", "cores: *x",
		"&a cores: *a\n", "? {a: b}\n: c\n", "data: |\n  x\n", "~: 1", "<<: {cores: 1}", "\x00", "max-body: 64MiB\nretain-age: 30d\nlisten: '[::1]:0'"} {
		f.Add(seed)
	}
	all := serverOptions(eight)
	f.Fuzz(func(t *testing.T, text string) {
		values, err := (&configFile{options: all}).parse([]byte(text))
		if err != nil {
			if values != nil || err.Error() == "" {
				t.Errorf("%q: %v with %v", text, err, values)
			}
			return
		}
		var c Config
		for name, v := range values {
			if kindOf(all, name) == "" {
				t.Errorf("%q: unknown option %q", text, name)
			}
			for _, o := range all {
				if o.name != name {
					continue
				}
				// Accepted values stay within their bounds.
				if err := o.set(&c, v.(string)); err == nil && (c.CPUMillis < 0 || c.MemoryBytes < 0 || c.KillGrace < 0 ||
					c.MaxTasks < 0 || c.MaxBody < 0 || c.RetainRuns < 0 || c.RetainAge < 0 || c.RetainKeys < 0) {
					t.Errorf("%s: %q gives %+v", name, v, c)
				}
			}
		}
	})
}
