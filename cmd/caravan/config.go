package main

import (
	"log/slog"
	"strings"
	"time"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// Config is what a server can be told. Each member is one option: a flag, an
// environment variable and a key of the configuration file; see options.
type Config struct {
	Listen         []string // addresses: host:port or unix:path
	Data           string
	CPUMillis      int64 // thousandths of a core
	MemoryBytes    int64 // memory that tasks may ask for together
	EnforceMemory  bool  // tasks get no more memory than they ask for
	KillGrace      time.Duration
	MaxTasks       int
	MaxBody        int64 // bytes
	MaxPerClient   int   // connections; 0 = half of all
	RetainRuns     int   // 0 = all
	RetainAge      time.Duration
	RetainKeys     time.Duration
	Slurm          bool     // tasks may choose the executor slurm
	SlurmPartition string   // partition of those that name none; "" = the cluster's default
	SlurmJobs      int      // of them at one time
	AllowHosts     []string // names that requests may ask for, besides those of the loopback addresses
	CORSOrigins    []string // of web pages that may use the API
	Paused         bool     // no task starts until somebody resumes the server
	Resume         bool     // tasks start, even if the server was paused before
	Unverified     bool     // stored data is not verified before it is used
	TokenFile      string
	TLSCert        string
	TLSKey         string
	TLSClientCA    string // certificates of clients must be signed by it
	Insecure       bool   // nothing is asked of callers beyond the loopback address
	AuditLog       string
	Umask          string // of tasks, octal: that of the server's launch; "" = this process's. No option
	HeapFloor      int64  // the size of the heap from which garbage is collected, in bytes; 0 = by percent alone
	LogLevel       slog.Level
	LogFormat      string // text or json
}

// option is one thing that a server can be told, under one name everywhere:
// --kill-grace, CARAVAN_KILL_GRACE, `kill-grace:`.
type option struct {
	name    string
	value   string // what stands for the value in the help
	usage   string
	initial string // the default, as a user would write it
	set     func(*Config, string) error
	// ofMachine: the default depends on the machine.
	ofMachine bool
}

// env is the environment variable of the option.
func (o option) env() string {
	return "CARAVAN_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// options are all there are, in the order of the help. hw is the default for
// cores and memory.
func options(hw machine) []option {
	return []option{
		{"listen", "addresses", "addresses to listen on: host:port (port 0 takes a free one) or unix:path", "127.0.0.1:2503",
			func(c *Config, s string) (err error) { c.Listen, err = parseListen(s); return err }, false},
		{"data", "folder", "folder that holds everything durable; made when it is not there", "./caravan-data",
			func(c *Config, s string) (err error) { c.Data, err = parseText(s); return err }, false},
		{"cores", "number", "cores that tasks may use together; default: this machine's", hw.coresText(),
			func(c *Config, s string) (err error) { c.CPUMillis, err = parseMilli(s); return err }, true},
		{"memory-mb", "number", "memory that tasks may ask for together, in MB; default: this machine's", hw.memoryText(),
			func(c *Config, s string) (err error) { c.MemoryBytes, err = parseMiB(s); return err }, true},
		{"enforce-memory", "switch", "on: kill tasks that take more memory than their memoryMB, where the machine lets the server limit it", "off",
			func(c *Config, s string) (err error) { c.EnforceMemory, err = parseSwitch(s); return err }, false},
		{"kill-grace", "duration", "time between SIGTERM and SIGKILL when an attempt is killed", "5s",
			func(c *Config, s string) (err error) { c.KillGrace, err = parseDuration(s); return err }, false},
		{"max-tasks", "number", "tasks that one run may have, generated ones included", "10000000",
			func(c *Config, s string) (err error) { c.MaxTasks, err = parseCount(s, 1, 1<<31); return err }, false},
		{"max-body", "size", "largest document that may be submitted", "256MiB",
			func(c *Config, s string) (err error) { c.MaxBody, err = parseSize(s); return err }, false},
		{"max-per-client", "number", "connections that one address, or user of a Unix socket, may have; 0: half of all", "0",
			func(c *Config, s string) (err error) { c.MaxPerClient, err = parseCount(s, 0, 1<<20); return err }, false},
		{"retain-runs", "number", "finished runs that are kept; 0 keeps all", "0",
			func(c *Config, s string) (err error) { c.RetainRuns, err = parseCount(s, 0, 1<<31); return err }, false},
		{"retain-age", "duration", "how long a finished run is kept; 0 keeps it for ever", "0",
			func(c *Config, s string) (err error) { c.RetainAge, err = parseDuration(s); return err }, false},
		{"retain-keys", "duration", "how long an idempotency key outlives its run", "24h",
			func(c *Config, s string) (err error) { c.RetainKeys, err = parseDuration(s); return err }, false},
		{"slurm", "switch", "on: tasks may choose the executor slurm, jobs of the Slurm cluster that this machine is set up for", "off",
			func(c *Config, s string) (err error) { c.Slurm, err = parseSwitch(s); return err }, false},
		{"slurm-partition", "name", "partition of Slurm jobs that name none; default: the cluster's", "",
			func(c *Config, s string) error { c.SlurmPartition = s; return nil }, false},
		{"slurm-jobs", "number", "tasks that are given to Slurm at one time", "1000",
			func(c *Config, s string) (err error) { c.SlurmJobs, err = parseCount(s, 1, 1<<20); return err }, false},
		{"allow-host", "names", "names that requests may ask for besides localhost, as `Host` has them; with it, only these", "",
			func(c *Config, s string) (err error) { c.AllowHosts, err = parseHosts(s); return err }, false},
		{"cors-origin", "origins", "origins of web pages that may use the API, such as https://app.example", "",
			func(c *Config, s string) (err error) { c.CORSOrigins, err = parseOrigins(s); return err }, false},
		{"paused", "switch", "on: start no task until `caravan resume --all`", "off",
			func(c *Config, s string) (err error) { c.Paused, err = parseSwitch(s); return err }, false},
		{"resume", "switch", "on: start tasks, also from a copied or restored data folder, and after a pause", "off",
			func(c *Config, s string) (err error) { c.Resume, err = parseSwitch(s); return err }, false},
		{"verify", "how", "full: prove at the start that all stored tables are whole; off: do not, for emergencies", "full",
			func(c *Config, s string) error {
				s, err := parseChoice(s, "full", "off")
				c.Unverified = s == "off"
				return err
			}, false},
		{"token-file", "file", "tokens of callers, with their scopes; see caravan token new. Read again at SIGHUP", "",
			func(c *Config, s string) error { c.TokenFile = s; return nil }, false},
		{"tls-cert", "file", "certificate chain, PEM: speak TLS; read again when it changes", "",
			func(c *Config, s string) error { c.TLSCert = s; return nil }, false},
		{"tls-key", "file", "key of the certificate, PEM", "",
			func(c *Config, s string) error { c.TLSKey = s; return nil }, false},
		{"tls-client-ca", "file", "authority, PEM, that the certificate of every client must be signed by", "",
			func(c *Config, s string) error { c.TLSClientCA = s; return nil }, false},
		{"insecure", "switch", "on: listen beyond the loopback address without tokens or client certificates", "off",
			func(c *Config, s string) (err error) { c.Insecure, err = parseSwitch(s); return err }, false},
		{"audit-log", "file", "record who changed what, and who was refused, as JSON lines; opened again at SIGHUP", "",
			func(c *Config, s string) error { c.AuditLog = s; return nil }, false},
		{"log-level", "level", "debug, info, warn or error", "info",
			func(c *Config, s string) (err error) { c.LogLevel, err = parseLevel(s); return err }, false},
		{"log-format", "format", "text or json", "text",
			func(c *Config, s string) (err error) { c.LogFormat, err = parseChoice(s, "text", "json"); return err }, false},
	}
}

const envConfig = "CARAVAN_CONFIG"

// configFlags gives a command the flag of every option, and --config.
func configFlags(flags *pflag.FlagSet, all []option) {
	flags.String("config", "", "configuration `file`, YAML (environment: "+envConfig+")")
	for _, o := range all {
		flags.Var(&text{value: o.initial, kind: o.value}, o.name, o.usage+" (environment: "+o.env()+")")
		if o.value == "switch" {
			flags.Lookup(o.name).NoOptDefVal = "on" // the name alone
		}
		if o.ofMachine {
			flags.Lookup(o.name).DefValue = "" // the help is the same on every machine
		}
	}
}

// text is the value of an option's flag: it is judged later, with the other sources.
type text struct {
	value, kind string
	set         bool
}

func (t *text) String() string { return t.value }
func (t *text) Type() string   { return t.kind }

// Set takes a value. The flag of a list may be given more than once.
func (t *text) Set(s string) error {
	if t.set && isList(t.kind) {
		s = t.value + "," + s
	}
	t.value, t.set = s, true
	return nil
}

// isList tells whether an option of this kind has several values: separated by
// commas, or the flag repeated, or a sequence in the configuration file.
func isList(kind string) bool { return kind == "names" || kind == "origins" || kind == "addresses" }

// resolve finds the value of every option: the flag, else the environment variable, else the
// configuration file, else the default. Errors name the source, and are usage errors.
func resolve(flags *pflag.FlagSet, lookup func(string) (string, bool), all []option) (Config, error) {
	path := flags.Lookup("config").Value.String()
	if v, ok := lookup(envConfig); ok && path == "" {
		path = v
	}
	file := &configFile{path: path, options: all}
	// From the weakest source to the strongest: each replaces what those before it have.
	sources := []struct {
		provider koanf.Provider
		origin   func(o option) string
	}{
		{confmap.Provider(defaults(all), "."), func(o option) string { return "the default of " + o.name }},
		{file, func(o option) string { return file.origin(o.name) }},
		{confmap.Provider(environment(lookup, all), "."), option.env},
		{posflag.ProviderWithValue(flags, ".", nil, asText), func(o option) string { return "--" + o.name }},
	}
	values, origins := koanf.New("."), map[string]func(option) string{}
	for _, source := range sources {
		err := values.Load(source.provider, nil, koanf.WithMergeFunc(func(from, into map[string]any) error {
			for name, value := range from {
				into[name], origins[name] = value, source.origin
			}
			return nil
		}))
		if err != nil {
			return Config{}, usagef("%w", err)
		}
	}
	var c Config
	for _, o := range all {
		if err := o.set(&c, values.String(o.name)); err != nil {
			return Config{}, usagef("%s: %w", origins[o.name](o), err)
		}
	}
	return c, nil
}

// defaults are the options' values where no source has another one.
func defaults(all []option) map[string]any {
	values := map[string]any{}
	for _, o := range all {
		values[o.name] = o.initial
	}
	return values
}

// environment holds the options that environment variables set; an empty variable sets none.
func environment(lookup func(string) (string, bool), all []option) map[string]any {
	values := map[string]any{}
	for _, o := range all {
		if v, ok := lookup(o.env()); ok && v != "" {
			values[o.name] = v
		}
	}
	return values
}

// asText keeps the text of a flag: options are parsed after the sources are merged.
func asText(name, value string) (string, any) { return name, value }

func optionNames(all []option) []string {
	var names []string
	for _, o := range all {
		names = append(names, o.name)
	}
	return names
}

// kindOf is the kind of value that an option has; "" for an unknown option.
func kindOf(all []option, name string) string {
	for _, o := range all {
		if o.name == name {
			return o.value
		}
	}
	return ""
}
