package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/http/access"
)

// option is one configurable setting. It has the same name everywhere: --kill-grace,
// CARAVAN_KILL_GRACE, `kill-grace:`. A new option is one entry of serverOptions with a field of
// Config (config.go), a row in docs/cli.md, and a line of completeOptions (suggest.go) if it has a fixed
// set of values; TestConfigurationPrecedence and TestCommandsAreDocumented ask for the rest.
type option struct {
	name string
	// value is the placeholder of the value in the help, and its kind: "switch" makes the flag usable
	// without a value, and isList names the kinds with several values.
	value   string
	usage   string
	initial string // the default, in the notation of a user
	// set parses a value and stores it. It is the only parser of the option, whatever place the
	// value comes from. Its error describes the value and leaves the place to the caller. After an
	// error the Config is not used.
	set func(*Config, string) error
	// ofMachine means that the default depends on the machine; the help then does not print it.
	ofMachine bool
}

// env returns the name of the option's environment variable: CARAVAN_KILL_GRACE for kill-grace.
func (o option) env() string {
	return "CARAVAN_" + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// serverOptions lists all options of a server. hw provides the defaults of cores and memory. Each
// call returns a new slice, which the caller may change: run has its own default for the level of
// the log.
func serverOptions(hw machine) []option {
	return []option{
		{"listen", "addresses", "addresses to listen on: host:port (port 0 takes a free one) or unix:path", "127.0.0.1:2503",
			func(c *Config, s string) (err error) { c.Listen, err = parseListen(s); return err }, false},
		{"data", "folder", "folder for everything durable; created if it does not exist", "./caravan-data",
			func(c *Config, s string) (err error) { c.Data, err = parseNonEmpty(s); return err }, false},
		{"cores", "number", "cores that tasks may use together; default: this machine's", hw.coresText(),
			func(c *Config, s string) (err error) { c.CPUMillis, err = parseThousandths(s); return err }, true},
		{"memory-mb", "number", "memory that tasks may ask for together, in MiB; default: this machine's", hw.memoryText(),
			func(c *Config, s string) (err error) { c.MemoryBytes, err = parseMiB(s); return err }, true},
		{"enforce-memory", "switch", "on: kill tasks that use more memory than their memoryMB, if the machine supports it", "off",
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
		{"slurm", "switch", "on: tasks may choose the executor slurm, which runs them in this machine's Slurm cluster", "off",
			func(c *Config, s string) (err error) { c.Slurm, err = parseSwitch(s); return err }, false},
		{"slurm-partition", "name", "partition of Slurm jobs without a partition; default: the cluster's", "",
			func(c *Config, s string) error { c.SlurmPartition = s; return nil }, false},
		{"slurm-jobs", "number", "tasks that Slurm has at one time", "1000",
			func(c *Config, s string) (err error) { c.SlurmJobs, err = parseCount(s, 1, 1<<20); return err }, false},
		{"allow-host", "names", "names that the Host header of requests may have, besides localhost", "",
			func(c *Config, s string) (err error) { c.AllowHosts, err = parseHosts(s); return err }, false},
		{"cors-origin", "origins", "origins of web pages that may use the API, such as https://app.example", "",
			func(c *Config, s string) (err error) { c.CORSOrigins, err = parseOrigins(s); return err }, false},
		{"paused", "switch", "on: start no task until `caravan resume --all`", "off",
			func(c *Config, s string) (err error) { c.Paused, err = parseSwitch(s); return err }, false},
		{"resume", "switch", "on: start tasks, also from a copied or restored data folder, and after a pause", "off",
			func(c *Config, s string) (err error) { c.Resume, err = parseSwitch(s); return err }, false},
		{"verify", "how", "full: verify all stored tables at the start; off: skip it, for emergencies", "full",
			func(c *Config, s string) error {
				s, err := parseChoice(s, "full", "off")
				c.Unverified = s == "off"
				return err
			}, false},
		{"token-file", "file", "tokens of clients, with their scopes; see caravan token new. Reloaded at SIGHUP", "",
			func(c *Config, s string) error { c.TokenFile = s; return nil }, false},
		{"tls-cert", "file", "certificate chain, PEM: turns on TLS; reloaded when it changes", "",
			func(c *Config, s string) error { c.TLSCert = s; return nil }, false},
		{"tls-key", "file", "key of the certificate, PEM", "",
			func(c *Config, s string) error { c.TLSKey = s; return nil }, false},
		{"tls-client-ca", "file", "authority, PEM, that must have signed the certificate of every client", "",
			func(c *Config, s string) error { c.TLSClientCA = s; return nil }, false},
		{"insecure", "switch", "on: listen beyond the loopback address without tokens or client certificates", "off",
			func(c *Config, s string) (err error) { c.Insecure, err = parseSwitch(s); return err }, false},
		{"audit-log", "file", "log of changes and refused requests, as JSON lines; reopened at SIGHUP", "",
			func(c *Config, s string) error { c.AuditLog = s; return nil }, false},
		{"node", "name", "name of this node: the server is a node of a cluster", "",
			func(c *Config, s string) (err error) { c.Node, err = parseNodeName(s); return err }, false},
		{"cluster", "nodes", "first nodes of the cluster, the same list on each: NAME=HOST:PORT", "",
			func(c *Config, s string) (err error) { c.Nodes, err = parseNodes(s); return err }, false},
		{"cluster-listen", "address", "address to listen on for other nodes, host:port; default: this node's in --cluster", "",
			func(c *Config, s string) (err error) { c.ClusterListen, err = parseClusterListen(s); return err }, false},
		{"partitions", "number", fmt.Sprintf("parts of the runs of a cluster, each led by one node; fixed by the first start; default: %d for a new cluster", cluster.DefaultPartitions), "",
			func(c *Config, s string) (err error) { c.Partitions, err = parsePartitions(s); return err }, false},
		{"worker-lease", "duration", "how long tasks of a cluster run without a leader; the same on each node", "5m",
			func(c *Config, s string) (err error) { c.WorkerLease, err = parseWorkerLease(s); return err }, false},
		{"log-copies", "number", "copies of output beyond 4 KiB in a cluster, on different nodes: 1 or 2", "2",
			func(c *Config, s string) (err error) { c.LogCopies, err = parseCount(s, 1, 2); return err }, false},
		{"replace", "switch", "on: with an empty data folder, take the place of the former node of this name, which is lost", "off",
			func(c *Config, s string) (err error) { c.Replace, err = parseSwitch(s); return err }, false},
		{"tls-dir", "folder", "certificate of this node, and the authority of the cluster; see caravan tls node. Reloaded when it changes", "",
			func(c *Config, s string) error { c.TLSDir = s; return nil }, false},
		{"log-level", "level", "debug, info, warn or error", "info",
			func(c *Config, s string) (err error) { c.LogLevel, err = parseLevel(s); return err }, false},
		{"log-format", "format", "text or json", "text",
			func(c *Config, s string) (err error) { c.LogFormat, err = parseChoice(s, "text", "json"); return err }, false},
	}
}

// addOptionFlags gives a command a flag for every option, and --config, which is not an option: a
// file cannot name another file.
func addOptionFlags(flags *pflag.FlagSet, all []option) {
	flags.String("config", "", "configuration `file`, YAML (environment: "+envConfig+")")
	for _, o := range all {
		flags.Var(&optionValue{value: o.initial, kind: o.value}, o.name, o.usage+" (environment: "+o.env()+")")
		if o.value == "switch" {
			flags.Lookup(o.name).NoOptDefVal = "on" // for the flag without a value
		}
		if o.ofMachine {
			flags.Lookup(o.name).DefValue = "" // so that the help is the same on every machine
		}
	}
}

// optionValue is the value of an option's flag, as text: resolveConfig parses it when it has merged
// all sources. So a mistake in it is reported like one in a variable or a file, and not by pflag in
// another form.
type optionValue struct {
	value string // the default until Set is called
	kind  string // option.value; pflag prints it in the help
	isSet bool   // Set was called
}

func (t *optionValue) String() string { return t.value }
func (t *optionValue) Type() string   { return t.kind }

// Set implements pflag.Value. The flag of a list may be repeated; the first one replaces the default.
// Other flags keep the last value, as is usual.
func (t *optionValue) Set(s string) error {
	if t.isSet && isList(t.kind) {
		s = t.value + "," + s
	}
	t.value, t.isSet = s, true
	return nil
}

// isList reports whether an option of this kind has several values: separated by commas, by
// repeating the flag, or as a sequence in the configuration file.
func isList(kind string) bool {
	return kind == "names" || kind == "origins" || kind == "addresses" || kind == "nodes"
}

// optionNames lists the names of options, for suggestions.
func optionNames(all []option) []string {
	var names []string
	for _, o := range all {
		names = append(names, o.name)
	}
	return names
}

// kindOf returns the kind of an option's value, or "" for an unknown option.
func kindOf(all []option, name string) string {
	for _, o := range all {
		if o.name == name {
			return o.value
		}
	}
	return ""
}

// The functions below parse the values of options in the notation of users. Their errors describe
// the mistake, with the value quoted; the caller adds the source, as in
//
//	configuration c.yaml: line 2, column 12: max-tasks: "many" is not a number from 1 to 2147483648

func parseNonEmpty(s string) (string, error) {
	if strings.TrimSpace(s) == "" {
		return "", errors.New("must not be empty")
	}
	return s, nil
}

// parseListen parses a list of addresses: "127.0.0.1:2503,unix:/run/caravan". It refuses an address
// that is given twice, which could only fail later, as "in use". Port 0 may occur several times:
// each is another free port.
func parseListen(s string) ([]string, error) {
	addresses := parseList(s)
	if len(addresses) == 0 {
		return nil, errors.New("must not be empty")
	}
	for i, address := range addresses {
		if err := checkAddress(address); err != nil {
			return nil, err
		}
		if slices.Contains(addresses[:i], address) && !strings.HasSuffix(address, ":0") {
			return nil, fmt.Errorf("%q is given twice", address)
		}
	}
	return addresses, nil
}

// checkAddress accepts host:port and unix:path. The port is a plain number: package net would also
// take a name ("http") or a sign, and then the address in the log would differ from the one that
// was given. An empty host means all interfaces.
func checkAddress(s string) error {
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		if path == "" {
			return fmt.Errorf("%q has no path", s)
		}
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", s, port)
	} else if strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q: port %q must be written without sign and leading zeros", s, port)
	}
	return nil
}

// parseThousandths parses a positive decimal number and returns it in thousandths, rounded: "0.5" is
// 500, of a core or of a MiB. The bounds keep the result positive and far from an overflow.
func parseThousandths(s string) (int64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0.001 || f > 1e12 {
		return 0, fmt.Errorf("%q is not a positive number", s)
	}
	return int64(math.Round(f * 1000)), nil
}

// parseMiB parses a positive decimal number of MiB and returns bytes, at most the largest int64:
// "512" is 536,870,912.
func parseMiB(s string) (int64, error) {
	milli, err := parseThousandths(s)
	if err != nil {
		return 0, err
	}
	if milli >= math.MaxInt64>>20 {
		return math.MaxInt64, nil
	}
	return milli << 20 / 1000, nil
}

// parseCount parses a whole number from least to most.
func parseCount(s string, least, most int64) (int, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q is not a number from %d to %d", s, least, most)
	}
	return int(n), nil
}

// parseDuration parses the format of time.ParseDuration, days ("30d"), and 0, which needs no unit.
// Retention is counted in days, for which Go has no unit, because a day of a calendar may have 23
// or 25 hours; here it has 24. At most 36,500 days, which is far from an overflow.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		f, err := strconv.ParseFloat(days, 64)
		if err != nil || !(f >= 0 && f <= 36500) {
			return 0, fmt.Errorf("%q is not a duration such as 500ms, 5s, 10m, 2h or 30d", s)
		}
		return time.Duration(f * float64(24*time.Hour)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 500ms, 5s, 10m, 2h or 30d", s)
	}
	return d, nil
}

// duration is a pflag.Value that parseDuration reads: for flags that are not options, such as wait
// --timeout, so that all durations have one notation.
type duration time.Duration

func (d *duration) Type() string { return "duration" }

func (d *duration) String() string {
	if d == nil || *d == 0 {
		return "0"
	}
	return time.Duration(*d).String()
}

func (d *duration) Set(s string) (err error) {
	*(*time.Duration)(d), err = parseDuration(s)
	return err
}

// maxSize is the largest size that an option may have, in bytes: 1 TiB, more than any document and
// far from an overflow.
const maxSize = 1 << 40

// parseSize parses a number of bytes with an optional unit, decimal (kB, MB) or binary (KiB, MiB):
// "1.5 MiB" is 1,572,864. It is at least 1.
func parseSize(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n < 1 || n > maxSize {
		return 0, fmt.Errorf("%q is not a size such as 1048576, 512KiB or 64MiB", s)
	}
	return int64(n), nil
}

// parseLevel parses a level of the log, in any case.
func parseLevel(s string) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	l, ok := levels[strings.ToLower(s)]
	if !ok {
		return 0, fmt.Errorf("%q must be one of debug, info, warn, error", s)
	}
	return l, nil
}

// parseSwitch accepts on and off, and their synonyms in YAML and other tools, in any case. A flag
// without a value is "on" (addOptionFlags), so a switch that a file or a variable has turned on can
// be turned off again: --slurm=off.
func parseSwitch(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "on", "true", "yes", "1":
		return true, nil
	case "off", "false", "no", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q must be on or off", s)
}

// parseChoice returns s if it is one of the choices, exactly.
func parseChoice(s string, choices ...string) (string, error) {
	if !slices.Contains(choices, s) {
		return "", fmt.Errorf("%q must be one of %s", s, strings.Join(choices, ", "))
	}
	return s, nil
}

// parseList splits a list at its commas. It drops blanks around the items and empty items, so that a
// comma at the end does no harm. An empty list is nil.
func parseList(s string) []string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// parseHosts and parseOrigins only check the items. openListeners builds the sets, one for each
// listener.
func parseHosts(s string) ([]string, error) {
	names := parseList(s)
	_, err := access.NewHosts(names...)
	return names, err
}

func parseOrigins(s string) ([]string, error) {
	origins := parseList(s)
	_, err := access.NewOrigins(origins...)
	return origins, err
}
