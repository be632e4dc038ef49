package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/caravan-dag/caravan/internal/vfs"
)

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
