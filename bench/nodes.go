package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// nodeCount is the number of nodes of each cluster: the least that survives the loss of one.
const nodeCount = 3

// clusterPatience bounds each wait for a cluster: for its first start, for a leader, for a node that gets
// all rows. It is far above what they take, so that a benchmark which hangs ends with an error.
const clusterPatience = 90 * time.Second

// nodeCluster is a cluster of nodes on this machine. They are servers like those of the other workloads,
// and find each other on the loopback interface, with mutual TLS. One goroutine uses it; others only have
// the URLs of its servers.
type nodeCluster struct {
	e          *benchEnv
	dir        string // certificates, and a data folder of each node
	partitions int
	servers    []*testenv.Server // by node; an element changes when its node starts again
	keys       atomic.Int64      // makes the idempotency keys of keyOf unique
}

// withCluster runs f with a fresh cluster on fresh data. An error of f comes with the ends of the logs.
func (e *benchEnv) withCluster(partitions int, f func(*nodeCluster) error, options ...string) error {
	c, err := e.startCluster(partitions, options)
	if err != nil {
		return err
	}
	return c.finish(f(c))
}

// startCluster starts all nodes of a cluster and returns when they are ready, which means that every
// partition has a leader. finish must follow. The addresses of nodes must be known before the nodes
// listen, so another process may take a port first: then the cluster starts once more.
func (e *benchEnv) startCluster(partitions int, options []string) (*nodeCluster, error) {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		c, err := e.formCluster(partitions, options)
		if err == nil {
			return c, nil
		}
		if attempt == attempts || e.ctx.Err() != nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
			return nil, fmt.Errorf("start %d nodes: %w", nodeCount, err)
		}
	}
}

// formCluster is one attempt of startCluster.
func (e *benchEnv) formCluster(partitions int, options []string) (c *nodeCluster, err error) {
	c = &nodeCluster{e: e, partitions: partitions}
	if c.dir, err = e.newFolder(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = c.finish(err)
		}
	}()
	authority := filepath.Join(c.dir, "authority")
	if err := e.runCaravan("tls", "init", "--ca-dir", authority); err != nil {
		return nil, err
	}
	var list []string
	for n := range nodeCount {
		address, err := testenv.FreeAddress()
		if err != nil {
			return nil, err
		}
		list = append(list, fmt.Sprintf("%s=%s", nodeName(n), address))
		if err := e.runCaravan("tls", "node", nodeName(n), "--ca-dir", authority, "--tls-dir", c.certificates(n)); err != nil {
			return nil, err
		}
	}
	for n := range nodeCount {
		s, err := testenv.Launch(testenv.Config{Binary: e.binary, Data: filepath.Join(c.dir, nodeName(n)), Ready: clusterPatience,
			Args: append(append(serverOptions(), "--node", nodeName(n), "--cluster", strings.Join(list, ","), "--tls-dir", c.certificates(n),
				"--partitions", fmt.Sprint(partitions)), options...)})
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		if err := s.AwaitReady(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func nodeName(n int) string { return fmt.Sprintf("n%d", n+1) }

// certificates is the folder with the certificate of a node.
func (c *nodeCluster) certificates(n int) string { return filepath.Join(c.dir, nodeName(n)+"-tls") }

// runCaravan runs a command of the measured binary, which must succeed.
func (e *benchEnv) runCaravan(args ...string) error {
	if out, err := exec.CommandContext(e.ctx, e.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("caravan %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// finish kills the servers, ends their workers and tasks, and removes the data. It returns err, with the
// ends of the logs, or the first error of the cleanup. A clean stop would take seconds: the last nodes
// would look for others that lead.
func (c *nodeCluster) finish(err error) error {
	defer os.RemoveAll(c.dir)
	for n, s := range c.servers {
		s.Kill()
		if err != nil {
			log := s.Log()
			err = fmt.Errorf("%w\nnode %s: %s", err, nodeName(n), log[max(0, len(log)-4000):])
		}
	}
	for _, s := range c.servers {
		if endErr := testenv.EndWorkers(s.Config().Data, 30*time.Second); err == nil {
			err = endErr
		}
	}
	return err
}

// urls returns the addresses of all nodes, except those of the given ones.
func (c *nodeCluster) urls(except ...int) (list []string) {
	for n, s := range c.servers {
		if !slices.Contains(except, n) {
			list = append(list, s.URL)
		}
	}
	return list
}

// keyOf returns a new idempotency key of a partition. The partition of a key is the beginning of its
// SHA-256, as a big-endian number of 64 bits, modulo the number of partitions; the callers check it by the ID
// of the run.
func (c *nodeCluster) keyOf(partition int) string {
	for {
		key := fmt.Sprintf("bench-%d", c.keys.Add(1))
		hash := sha256.Sum256([]byte(key))
		if binary.BigEndian.Uint64(hash[:])%uint64(c.partitions) == uint64(partition) {
			return key
		}
	}
}

// status returns the cluster as a node sees it.
func (c *nodeCluster) status(n int) (*client.Cluster, error) {
	api, err := client.New(client.Config{Server: c.servers[n].URL})
	if err != nil {
		return nil, err
	}
	defer api.CloseIdle()
	ctx, cancel := context.WithTimeout(c.e.ctx, 10*time.Second)
	defer cancel()
	return api.Cluster(ctx)
}

// leaders returns the node that leads each partition, and the ID of each node, as a node sees them. It
// waits until all partitions have a leader.
func (c *nodeCluster) leaders(asked int) (leads []int, ids map[string]string, err error) {
	err = c.await("a leader of each partition", func() (bool, error) {
		found, err := c.status(asked)
		if err != nil {
			return false, err
		}
		leads, ids = nil, map[string]string{}
		for _, n := range found.Nodes {
			ids[n.Name] = n.ID
		}
		for _, p := range found.Partitions {
			for n := range nodeCount {
				if found.NameOf(p.Leader) == nodeName(n) {
					leads = append(leads, n)
				}
			}
		}
		return len(leads) == c.partitions, nil
	})
	return leads, ids, err
}

// awaitBalance returns when each partition is led by the node that it prefers: partition 0 by the first one,
// partition 1 by the second, and so on. A partition moves once when it has been at rest for a while, and a
// measurement in that moment would show the move. A cluster that does not get there in time is measured as
// it is. A shortened run does not wait.
func (c *nodeCluster) awaitBalance() error {
	const limit = 40 * time.Second
	if c.e.smoke {
		return nil
	}
	deadline := time.Now().Add(limit)
	return c.e.pollUntil(100*time.Millisecond, func() (bool, error) {
		leads, _, err := c.leaders(0)
		for p, n := range leads {
			if n != p%nodeCount {
				return time.Now().After(deadline), err
			}
		}
		return true, err
	})
}

// awaitReplicas returns when the leaders have heard of every replica that it has all rows. The nodes of the
// cluster are those of ids, of which one may have another ID now, not "".
func (c *nodeCluster) awaitReplicas(replaced, formerID string) error {
	return c.await("all replicas having all rows", func() (bool, error) {
		caughtUp := 0
		for n := range c.servers {
			found, err := c.status(n)
			if err != nil {
				return false, err
			}
			for _, node := range found.Nodes {
				if node.Name == replaced && node.ID == formerID {
					return false, nil
				}
			}
			for _, p := range found.Partitions {
				if p.Leader == found.Node && p.Lease && p.Lag == 0 {
					caughtUp++
				}
			}
		}
		return caughtUp == c.partitions, nil
	})
}

// await calls holds until it returns true. A call that fails is repeated: a node that starts or elects a
// leader refuses requests for a moment. The last failure is a part of the error after clusterPatience.
func (c *nodeCluster) await(what string, holds func() (bool, error)) error {
	var last error
	deadline := time.Now().Add(clusterPatience)
	return c.e.pollUntil(20*time.Millisecond, func() (bool, error) {
		ok, err := holds()
		if err != nil {
			last = err
		}
		if !ok && time.Now().After(deadline) {
			return false, fmt.Errorf("%s: not within %v: %w", what, clusterPatience, errors.Join(last, os.ErrDeadlineExceeded))
		}
		return ok && err == nil, nil
	})
}

// loseMachine ends a node as a machine does that is lost with its disk: SIGKILL for the server and its
// worker, and the data folder is gone. Tasks that run go on, but their ends do not reach anybody.
func (c *nodeCluster) loseMachine(n int) error {
	data := c.servers[n].Config().Data
	c.servers[n].Kill()
	killed := func() bool {
		workers := testenv.Workers(data)
		for _, pid := range workers {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended since
		}
		return len(workers) == 0
	}
	if !testenv.Poll(clusterPatience, killed) {
		return fmt.Errorf("node %s: its worker survives SIGKILL", nodeName(n))
	}
	// Tasks may still write into the folder.
	return os.Rename(data, fmt.Sprintf("%s-lost-%d", data, c.keys.Add(1)))
}

// startAgain starts a node that has ended, with further options, and returns when it is ready.
func (c *nodeCluster) startAgain(n int, options ...string) error {
	cfg := c.servers[n].Config()
	for _, option := range options {
		if !slices.Contains(cfg.Args, option) {
			cfg.Args = append(slices.Clone(cfg.Args), option)
		}
	}
	s, err := testenv.Start(cfg)
	if err != nil {
		return fmt.Errorf("start node %s again: %w", nodeName(n), err)
	}
	c.servers[n] = s
	return nil
}

// submitTo sends a graph to a node with an idempotency key of a partition, and returns the ID of the run,
// which is of that partition.
func (c *nodeCluster) submitTo(url string, partition int, doc []byte) (run uint64, err error) {
	request := keyedRequest(c.keyOf(partition), doc)
	err = c.await("a submission", func() (bool, error) {
		r, err := newRunner(url)
		if err != nil {
			return false, err
		}
		defer r.Close()
		run, err = r.sendSubmission(request)
		return err == nil, err
	})
	if err == nil && run%uint64(c.partitions) != uint64(partition) {
		err = fmt.Errorf("run %d is not of partition %d of %d: the benchmark computes the partitions of keys in another way than the nodes", run, partition, c.partitions)
	}
	return run, err
}
