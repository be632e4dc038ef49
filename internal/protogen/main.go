// Command protogen writes the Go code of a .proto file with the generators of protobuf, of gRPC and
// of vtprotobuf. It needs no protoc: protocompile reads the file, and the generators are tools of
// this module, at the versions of its go.mod. It is a separate module, so that its requirements do
// not become dependencies of Caravan.
//
// Usage, in a //go:generate line: go -C PATH/TO/protogen run . FOLDER FILE.proto
//
// FOLDER is relative to this folder, because of -C. The code is written next to the .proto file,
// and checked in, so that a build can do without this program. `make generated` fails when it
// differs.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// generator is a tool of this module that speaks protoc's protocol for plugins: a
// CodeGeneratorRequest on its standard input, a CodeGeneratorResponse on its standard output. The
// go.mod of this folder lists the tools.
type generator struct{ tool, options string }

// generators run one after the other; each writes files of its own. vtprotobuf makes the encoding
// that frames use, without reflection, with pools for frames and their parts, which are sent most.
var generators = []generator{
	{"google.golang.org/protobuf/cmd/protoc-gen-go", "paths=source_relative"},
	{"google.golang.org/grpc/cmd/protoc-gen-go-grpc", "paths=source_relative"},
	{"github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto", "paths=source_relative,features=marshal+unmarshal+size+pool" +
		",pool=github.com/caravan-dag/caravan/executor/workerpb.ServerFrame" +
		",pool=github.com/caravan-dag/caravan/executor/workerpb.WorkerFrame" +
		",pool=github.com/caravan-dag/caravan/executor/workerpb.PartitionOrders" +
		",pool=github.com/caravan-dag/caravan/executor/workerpb.PartitionReport"},
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: protogen FOLDER FILE.proto")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// run writes what the generators make of the file into its folder. Imports of the file are looked
// up there, too.
func run(folder, name string) error {
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: []string{folder}},
		SourceInfoMode: protocompile.SourceInfoStandard, // comments go into the generated code
	}
	files, err := compiler.Compile(context.Background(), name)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{name},
		ProtoFile:      []*descriptorpb.FileDescriptorProto{protoutil.ProtoFromFileDescriptor(files[0])},
	}
	for _, g := range generators {
		if err := g.run(request, folder); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(g.tool), err)
		}
	}
	return nil
}

// run gives the request to the generator and writes the files of its answer. The generator's own
// messages go to standard error. It changes the parameter of the request, and leaves the rest for
// the next generator.
func (g generator) run(request *pluginpb.CodeGeneratorRequest, folder string) error {
	request.Parameter = proto.String(g.options)
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", g.tool)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		if err := os.WriteFile(filepath.Join(folder, f.GetName()), []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
