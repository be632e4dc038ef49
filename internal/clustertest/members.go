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

// MemberArguments returns the arguments that make the node a member of the cluster, for
// Options.Arguments: its name, the list of the first members (--cluster) or their addresses (--join),
// and the folder of its certificate. The first call creates all certificates with the binary under
// test.
//
// The addresses are those that others dial. In the form of the network with proxies a member listens
// elsewhere (--cluster-listen).
func (n *Node) MemberArguments() []string {
	c := n.cluster
	c.certificates.Do(func() {
		if err := c.createCertificates(); err != nil {
			c.t.Fatal(err)
		}
	})
	var list, addresses []string
	isFirst := false
	for _, member := range c.nodes[:c.options.Members] {
		_, dial := member.Endpoint(ClusterPort)
		list = append(list, member.Name+"="+dial)
		addresses = append(addresses, dial)
		isFirst = isFirst || member == n
	}
	arguments := []string{"--node", n.Name, "--tls-dir", c.certificateFolder(n.Name)}
	if listen, dial := n.Endpoint(ClusterPort); listen != dial {
		arguments = append(arguments, "--cluster-listen", listen)
	}
	if isFirst {
		return append(arguments, "--cluster", strings.Join(list, ","))
	}
	return append(arguments, "--join", strings.Join(addresses, ","))
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
