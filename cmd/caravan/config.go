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

	"github.com/caravan-dag/caravan/internal/vfs"
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

const envConfig = "CARAVAN_CONFIG"

// resolveConfig finds the value of every option: the flag, else the environment variable, else the
// configuration file, else the default. Errors name the source, and are usage errors.
func resolveConfig(flags *pflag.FlagSet, lookup func(string) (string, bool), all []option) (Config, error) {
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
		{confmap.Provider(defaultValues(all), "."), func(o option) string { return "the default of " + o.name }},
		{file, func(o option) string { return file.origin(o.name) }},
		{confmap.Provider(environmentValues(lookup, all), "."), option.env},
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
	for _, o := range all {
		if err := o.set(&c, values.String(o.name)); err != nil {
			return Config{}, usageErrorf("%s: %w", origins[o.name](o), err)
		}
	}
	return c, nil
}

// defaultValues are the options' values where no source has another one.
func defaultValues(all []option) map[string]any {
	values := map[string]any{}
	for _, o := range all {
		values[o.name] = o.initial
	}
	return values
}

// environmentValues holds the options that environment variables set; an empty variable sets none.
func environmentValues(lookup func(string) (string, bool), all []option) map[string]any {
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

// configFile is a configuration file as a koanf.Provider: one YAML mapping of option names to
// values. Read finds every mistake and names it with its line and column.
type configFile struct {
	path      string // "" = no file
	options   []option
	positions map[string]string // by option, where its value begins
}

// Read implements koanf.Provider. The values are strings, as a flag would have them.
func (f *configFile) Read() (map[string]any, error) {
	if f.path == "" {
		return nil, nil
	}
	text, err := vfs.ReadGiven(f.path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	values, err := f.parse(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", f.path, err)
	}
	return values, nil
}

// ReadBytes implements koanf.Provider, which asks for it only beside a koanf.Parser.
func (f *configFile) ReadBytes() ([]byte, error) {
	return nil, errors.New("configuration: use Read")
}

// origin says where the value of an option stands, for errors.
func (f *configFile) origin(name string) string {
	return fmt.Sprintf("configuration %s: %s: %s", f.path, f.positions[name], name)
}

// parse reads the text of the file.
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
		return nil, fmt.Errorf("%s: a second document begins: a configuration is one", position(documentToken(file.Docs[1])))
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

// parseEntry adds one entry of the mapping to values.
func (f *configFile) parseEntry(key, value ast.Node, values map[string]any) error {
	name, isText := scalarText(key)
	if !isText {
		return errors.New("a key is a name, not a collection or an alias")
	}
	kind := kindOf(f.options, name)
	if kind == "" {
		if meant := nearest(name, optionNames(f.options)); meant != "" {
			return fmt.Errorf("unknown key %q%s", name, didYouMean(meant))
		}
		return fmt.Errorf("unknown key %q", name)
	}
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

// scalarText is the text of a scalar as the file has it; false for null, collections and aliases.
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

// documentToken is where a document begins.
func documentToken(doc *ast.DocumentNode) *token.Token {
	switch {
	case doc.Start != nil:
		return doc.Start
	case doc.Body != nil:
		return doc.Body.GetToken()
	}
	return nil
}

func position(t *token.Token) string {
	if t == nil || t.Position == nil {
		return "at the end"
	}
	return fmt.Sprintf("line %d, column %d", t.Position.Line, t.Position.Column)
}
