package clustertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/internal/clustertest/network"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// MemberArguments returns the arguments that make the node a member of the cluster of all nodes, for
// Options.Arguments: its name, the list of members, and the folder of its certificate. The first call
// creates the certificates with the binary under test.
//
// The list has the dial addresses. In the form of the network with proxies a member listens elsewhere
// (Node.Endpoint), and needs further arguments that say so.
func (n *Node) MemberArguments() []string {
	c := n.cluster
	c.certificates.Do(func() {
		if err := c.createCertificates(); err != nil {
			c.t.Fatal(err)
		}
	})
	return []string{"--node", n.Name, "--cluster", c.memberList(), "--tls-dir", c.certificateFolder(n.Name)}
}

// memberList is the list of all nodes: n1=HOST:PORT,n2=HOST:PORT.
func (c *Cluster) memberList() string {
	var members []string
	for _, n := range c.nodes {
		_, dial := n.Endpoint(ClusterPort)
		members = append(members, n.Name+"="+dial)
	}
	return strings.Join(members, ",")
}

// certificateFolder lies outside of the data folder, so that a wiped node keeps its certificate.
func (c *Cluster) certificateFolder(node string) string { return filepath.Join(c.base, "tls", node) }

// createCertificates makes an authority, and a certificate for each node.
func (c *Cluster) createCertificates() error {
	authority := filepath.Join(c.base, "authority")
	if _, err := c.RunCommand(context.Background(), "tls", "init", "--ca-dir", authority); err != nil {
		return err
	}
	for _, n := range c.nodes {
		_, err := c.RunCommand(context.Background(), "tls", "node", n.Name, "--ca-dir", authority, "--tls-dir", c.certificateFolder(n.Name))
		if err != nil {
			return err
		}
	}
	return nil
}

// RunCommand runs the binary under test as a client does on its command line: in
// network.ClientPlace, so that it reaches the nodes (--server, Node.URL) over the disturbed network.
// It returns the standard output. An error has the other output.
func (c *Cluster) RunCommand(ctx context.Context, arguments ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.options.Binary, arguments...)
	// Variables of this process that are options of the binary do not apply.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "CARAVAN_") })
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = testenv.OnOwnThread(func() error {
		if err := c.Network.EnterPlace(network.ClientPlace); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(arguments, " "), err, &stderr)
	}
	return stdout.String(), nil
}
