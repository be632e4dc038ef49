package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// Config is the configuration of a server. Each member is one option, except Umask and HeapFloor: a
// flag, an environment variable and a key of the configuration file. serverOptions lists them, with
// their defaults and bounds. A Config is complete when a command has filled those two, and does not
// change after that.
type Config struct {
	Listen         []string      // addresses: host:port or unix:path; at least one
	Data           string        // path as the user wrote it; datafolder.Folder.Path is the absolute one
	CPUMillis      int64         // thousandths of a core
	MemoryBytes    int64         // memory that tasks may ask for together
	EnforceMemory  bool          // a task gets no more memory than it asks for
	KillGrace      time.Duration // between SIGTERM and SIGKILL; 0 = SIGKILL at once
	MaxTasks       int           // of one run, generated ones included
	MaxBody        int64         // bytes
	MaxPerClient   int           // connections; 0 = half of all
	RetainRuns     int           // 0 = all
	RetainAge      time.Duration // 0 = for ever
	RetainKeys     time.Duration // how long an idempotency key outlives its run
	Slurm          bool          // jobs may name the executor slurm
	SlurmPartition string        // partition of jobs that name none; "" = the cluster's default
	SlurmJobs      int           // jobs at a time
	AllowHosts     []string      // host names that requests may address, besides the loopback names
	CORSOrigins    []string      // origins of web pages that may use the API
	Paused         bool          // no task starts until the server is resumed
	Resume         bool          // tasks start, even if the data folder is paused
	Unverified     bool          // skip the verification of stored data
	TokenFile      string        // "" = no tokens
	TLSCert        string        // PEM; "" = no TLS. TLSCert and TLSKey are given together
	TLSKey         string
	TLSClientCA    string // authority that must have signed every client certificate
	Insecure       bool   // allow listening beyond the loopback address without authentication
	AuditLog       string // "" = no audit log
	Node           string // name of this node of a cluster; "" = a single server. checkNode checks it with the next two
	Nodes          []cluster.NodeAddress
	ClusterListen  string // host:port; "" = the node's own address in Nodes
	Partitions     int    // of a cluster; 0 = that of the data folder, or cluster.DefaultPartitions
	WorkerLease    time.Duration
	LogCopies      int
	Replace        bool     // take the place of the former node of this name
	TLSDir         string   // certificates of nodes
	Join           []string // of a worker: addresses of nodes
	Umask          string   // umask of tasks, octal: that of the launching shell; "" = this process's. Not an option
	HeapFloor      int64    // heap size in bytes below which the collector stays idle; 0 = by percent alone
	LogLevel       slog.Level
	LogFormat      string // text or json
}

// envConfig names the configuration file. The flag --config comes before it.
const envConfig = "CARAVAN_CONFIG"

// resolveConfig finds the value of every option: the flag, else the environment variable, else the
// configuration file, else the default. Its errors are usage errors and name the source. flags has
// --config and may lack the flags of some options, as those of `caravan run` do: such an option comes
// from the other sources. lookup is os.LookupEnv, or a table in tests.
//
// Each layer is a koanf.Provider of texts. koanf merges them, and remembers neither who set a value
// nor where, so the merge function notes the origin of each value beside it. That is why a mistake
// in a value names the line of the file, or the variable, that the value really came from.
func resolveConfig(flags *pflag.FlagSet, lookup func(string) (string, bool), all []option) (Config, error) {
	path := flags.Lookup("config").Value.String()
	if v, ok := lookup(envConfig); ok && path == "" {
		path = v
	}
	file := &configFile{path: path, options: all}
	// From the weakest source to the strongest: each one replaces the values of those before it.
	sources := []struct {
		provider koanf.Provider
		origin   func(o option) string
	}{
		{confmap.Provider(defaultValues(all), "."), func(o option) string { return "the default of " + o.name }},
		{file, func(o option) string { return file.origin(o.name) }},
		{confmap.Provider(environmentValues(lookup, all), "."), option.env},
		// With nil for the merged values it skips the flags that the user has not set: their defaults
		// would hide the file and the environment.
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
			return Config{}, usageErrorf("%w", err)
		}
	}
	var c Config
	for _, o := range all { // in their order, so that of several mistakes always the same one is reported
		if err := o.set(&c, values.String(o.name)); err != nil {
			return Config{}, usageErrorf("%s: %w", origins[o.name](o), err)
		}
	}
	return c, nil
}

// defaultValues holds the value of each option that applies when no source sets it.
func defaultValues(all []option) map[string]any {
	values := map[string]any{}
	for _, o := range all {
		values[o.name] = o.initial
	}
	return values
}

// environmentValues holds the options that environment variables set. An empty variable counts as
// unset: that is how a unit file or a compose file takes back what an outer one has set.
func environmentValues(lookup func(string) (string, bool), all []option) map[string]any {
	values := map[string]any{}
	for _, o := range all {
		if v, ok := lookup(o.env()); ok && v != "" {
			values[o.name] = v
		}
	}
	return values
}

// asText keeps a flag's value as text: options are parsed after the sources are merged.
func asText(name, value string) (string, any) { return name, value }

// configFile is a configuration file as a koanf.Provider: one YAML mapping of option names to
// values. Read reports every mistake with its line and column. The parsers of koanf would give Go
// values instead: without positions, and with "1e3" or "0644" already taken for a number. Here a
// scalar stays the text that the user wrote.
type configFile struct {
	path      string            // "" = no file
	options   []option          // the keys that may occur
	positions map[string]string // by option: where its value begins, as "line 2, column 12"; filled by parse
}

// Read implements koanf.Provider. Its values are strings, as flags would have them. The file is a
// regular one of at most vfs.MaxUserFileBytes: a FIFO would make the start wait for its writer.
func (f *configFile) Read() (map[string]any, error) {
	if f.path == "" {
		return nil, nil
	}
	text, err := vfs.ReadUserFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	values, err := f.parse(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", f.path, err)
	}
	return values, nil
}

// ReadBytes implements koanf.Provider. koanf calls it only for providers with a koanf.Parser.
func (f *configFile) ReadBytes() ([]byte, error) {
	return nil, errors.New("configuration: use Read")
}

// origin says where the file sets an option, for errors.
func (f *configFile) origin(name string) string {
	return fmt.Sprintf("configuration %s: %s: %s", f.path, f.positions[name], name)
}

// parse returns the entries of a configuration file, by option. An empty file, or one of comments
// alone, has no entries and gives nil. Mistakes in several entries are one error, in the order of
// the file; after an error the entries are nil. FuzzConfigFile holds it to that.
func (f *configFile) parse(text []byte) (map[string]any, error) {
	f.positions = map[string]string{}
	file, err := parser.ParseBytes(text, 0)
	var mistake yaml.Error
	switch {
	case errors.As(err, &mistake):
		return nil, fmt.Errorf("%s: %s", position(mistake.GetToken()), mistake.GetMessage())
	case err != nil:
		return nil, err
	case len(file.Docs) > 1:
		return nil, fmt.Errorf("%s: a second document begins; a configuration is one document", position(documentToken(file.Docs[1])))
	case len(file.Docs) == 0:
		return nil, nil
	}
	var root ast.MapNode
	switch body := file.Docs[0].Body.(type) {
	case nil, *ast.NullNode, *ast.CommentGroupNode:
		return nil, nil
	case ast.MapNode:
		root = body
	default:
		return nil, fmt.Errorf("%s: expected `name: value` lines", position(body.GetToken()))
	}
	values := map[string]any{}
	var problems []string
	for entry := root.MapRange(); entry.Next(); {
		if err := f.parseEntry(entry.Key(), entry.Value(), values); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", position(entry.Key().GetToken()), err))
		}
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "; "))
	}
	return values, nil
}

// parseEntry adds one entry of the mapping to values. A list becomes the text with commas that a flag
// would have; only options with several values may be one. null is an error, because it could mean
// either the default or the empty value.
func (f *configFile) parseEntry(key, value ast.Node, values map[string]any) error {
	name, isText := scalarText(key)
	if !isText {
		return errors.New("a key must be a name")
	}
	kind := kindOf(f.options, name)
	if kind == "" {
		if meant := nearest(name, optionNames(f.options)); meant != "" {
			return fmt.Errorf("unknown key %q%s", name, didYouMean(meant))
		}
		return fmt.Errorf("unknown key %q", name)
	}
	// The YAML parser refuses equal keys by itself. This holds whatever it takes for equal.
	if _, twice := values[name]; twice {
		return fmt.Errorf("key %q is given twice", name)
	}
	text, isText := scalarText(value)
	if list, ok := value.(*ast.SequenceNode); ok && isList(kind) {
		var items []string
		for _, node := range list.Values {
			item, ok := scalarText(node)
			if !ok {
				return fmt.Errorf("key %q needs a list of plain values", name)
			}
			items = append(items, item)
		}
		text, isText = strings.Join(items, ","), true
	}
	if !isText {
		return fmt.Errorf("key %q needs one value", name)
	}
	values[name], f.positions[name] = text, position(value.GetToken())
	return nil
}

// scalarText returns the text of a scalar as written in the file: 1e3 stays "1e3". It returns false
// for null, collections and aliases. An anchor or a tag before the scalar is ignored.
func scalarText(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	case *ast.AnchorNode:
		return scalarText(n.Value)
	case *ast.TagNode:
		return scalarText(n.Value)
	}
	return "", false
}

// documentToken returns the first token of a document, or nil for an empty one.
func documentToken(doc *ast.DocumentNode) *token.Token {
	switch {
	case doc.Start != nil:
		return doc.Start
	case doc.Body != nil:
		return doc.Body.GetToken()
	}
	return nil
}

// position says where a token is, for errors, counted from 1.
func position(t *token.Token) string {
	if t == nil || t.Position == nil {
		return "at the end"
	}
	return fmt.Sprintf("line %d, column %d", t.Position.Line, t.Position.Column)
}
