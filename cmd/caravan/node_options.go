package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/messages"
)

// minNodes is the smallest number of nodes with which a cluster begins. Two nodes stop when one of them
// does, and so are worse than one.
const minNodes = 3

// parseNodes parses the list of a cluster's first nodes: "n1=10.0.0.1:2504,n2=…". An empty list means a
// single server.
func parseNodes(s string) ([]cluster.NodeAddress, error) {
	var nodes []cluster.NodeAddress
	for _, item := range parseList(s) {
		name, address, found := strings.Cut(item, "=")
		if !found {
			return nil, fmt.Errorf("%q is not NAME=HOST:PORT", item)
		}
		if err := clustertls.CheckName(name); err != nil {
			return nil, err
		}
		if err := checkNodeAddress(address); err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
		for _, former := range nodes {
			switch {
			case former.Name == name:
				return nil, fmt.Errorf("node %s is given twice", name)
			case former.Address == address:
				return nil, fmt.Errorf("nodes %s and %s have the same address %s", former.Name, name, address)
			}
		}
		nodes = append(nodes, cluster.NodeAddress{Name: name, Address: address})
	}
	if len(nodes) > 0 && len(nodes) < minNodes {
		return nil, fmt.Errorf("a cluster begins with at least %d nodes, not %d: with fewer, it stops when one of them does", minNodes, len(nodes))
	}
	return nodes, nil
}

// checkNodeAddress accepts host:port as other nodes dial it: with a host, and with a port that is known
// before the node listens.
func checkNodeAddress(s string) error {
	if strings.HasPrefix(s, unixPrefix) {
		return fmt.Errorf("%q is not host:port", s)
	}
	if err := checkAddress(s); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return err
	}
	ip := net.ParseIP(host)
	switch {
	case host == "", ip != nil && ip.IsUnspecified():
		return fmt.Errorf("%q has no host that other nodes can dial", s)
	case port == "0":
		return fmt.Errorf("%q: other nodes cannot dial port 0", s)
	}
	return nil
}

// parseClusterListen accepts host:port, with any host and port; "" for the address in the list.
func parseClusterListen(s string) (string, error) {
	if strings.HasPrefix(s, unixPrefix) {
		return "", fmt.Errorf("%q is not host:port", s)
	}
	if s == "" {
		return "", nil
	}
	return s, checkAddress(s)
}

// parseWorkerLease accepts a duration that leaves room for an election.
func parseWorkerLease(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d < lease.Least {
		err = fmt.Errorf("%v is below %v: a new leader must be able to renew it in time", d, lease.Least)
	}
	return d, err
}

// parseNodeName accepts the name of this node; "" for a single server.
func parseNodeName(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return s, clustertls.CheckName(s)
}

// parsePartitions parses a number of partitions. "" is 0: that of the data folder, or of a new cluster.
func parsePartitions(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	return parseCount(s, 1, messages.MaxPartitions)
}

// checkNode checks the options of a node against each other. Its errors are usage errors.
func checkNode(c Config) error {
	var names []string
	for _, node := range c.Nodes {
		names = append(names, node.Name)
	}
	var err error
	switch {
	case c.Node == "" && len(c.Nodes) > 0:
		err = fmt.Errorf("--cluster needs --node, the name of this node: one of %s", strings.Join(names, ", "))
	case c.Node == "" && c.ClusterListen != "":
		err = errors.New("--cluster-listen is for a node of a cluster and needs --node and --cluster; --listen is for the API")
	case c.Node == "" && c.Replace:
		err = errors.New("--replace is for a node of a cluster and needs --node and --cluster")
	case c.Node == "" && c.TLSDir != "":
		err = errors.New("--tls-dir is for a node of a cluster and needs --node and --cluster; --tls-cert is for the API")
	case c.Node == "":
	case len(c.Nodes) == 0:
		err = errors.New("--node needs --cluster, the list of the first nodes: n1=HOST:PORT,n2=HOST:PORT,n3=HOST:PORT")
	case !slices.Contains(names, c.Node):
		err = fmt.Errorf("--node: %s is not in --cluster, which lists %s", c.Node, strings.Join(names, ", "))
	case c.TLSDir == "":
		err = fmt.Errorf("--tls-dir is missing: nodes know each other by certificates; `caravan tls node %s` creates that of this node", c.Node)
	case c.Paused || c.Resume:
		err = errors.New("--paused and --resume are for single servers: each leader of a cluster begins without a pause")
	case c.Slurm:
		err = errors.New("--slurm and --node cannot be combined: the state of Slurm jobs is in the folder of one server")
	}
	if err != nil {
		return &usageError{err}
	}
	return nil
}
