package clustertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest/network"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// Node is one node of a cluster: a machine with a place in the network, a data folder and at most
// one server process. Its methods may be called from any goroutine, but one at a time for each node.
type Node struct {
	Name string

	cluster *Cluster
	data    string
	disk    *faults.Ext4 // nil: the data folder is a plain one
	boot    *bootID      // nil without a disk

	endFreeze func() // ends the interruption of the last Freeze

	mu     sync.Mutex
	server *testenv.Server   // the newest; nil before the first launch
	former []*testenv.Server // the others, oldest first
}

// Data is the path of the node's data folder.
func (n *Node) Data() string { return n.data }

// Endpoint returns where the node must listen for a port (APIPort, ClusterPort or any other number),
// and where others reach it.
func (n *Node) Endpoint(port int) (listen, dial string) {
	listen, dial, err := n.cluster.Network.Endpoint(n.Name, port)
	if err != nil {
		n.cluster.t.Fatalf("node %s: port %d: %v", n.Name, port, err)
	}
	return listen, dial
}

// Launch starts the server and does not wait for it. arguments come after those of the options.
func (n *Node) Launch(arguments ...string) error {
	if n.IsRunning() {
		return fmt.Errorf("node %s runs already", n.Name)
	}
	listen, _ := n.Endpoint(APIPort)
	cfg := testenv.Config{
		Binary: n.cluster.options.Binary,
		Data:   n.data,
		Listen: listen,
		Env:    n.cluster.options.Env,
		Enter:  n.enterNode,
	}
	if n.cluster.options.Faulty {
		cfg.Env = append(slices.Clone(cfg.Env), "CARAVAN_FAULT_CLOCK="+n.clockFile())
	}
	if n.cluster.options.Arguments != nil {
		cfg.Args = n.cluster.options.Arguments(n)
	}
	cfg.Args = slices.Concat(cfg.Args, arguments)
	server, err := testenv.Launch(cfg)
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	n.cluster.Network.SetProcess(n.Name, server.PID())
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server != nil {
		n.former = append(n.former, n.server)
	}
	n.server = server
	return nil
}

// enterNode moves the calling thread to the node: to its place in the network, and to its boot ID.
func (n *Node) enterNode() error {
	if err := n.cluster.Network.EnterPlace(n.Name); err != nil {
		return err
	}
	if n.boot != nil {
		return n.boot.coverFile()
	}
	return nil
}

// currentServer returns the newest server process; nil before the first launch.
func (n *Node) currentServer() *testenv.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// IsRunning reports whether the server process exists, also when it is frozen.
func (n *Node) IsRunning() bool {
	s := n.currentServer()
	if s == nil {
		return false
	}
	select {
	case <-s.Ended():
		return false
	default:
		return true
	}
}

// Server is the newest server process of the node; nil before the first launch.
func (n *Node) Server() *testenv.Server { return n.currentServer() }

// AwaitReady waits until /ready answers 200, as clients reach it. A server that exits is an error
// with its log.
func (n *Node) AwaitReady(limit time.Duration) error {
	s := n.currentServer()
	client := n.cluster.HTTPClient(n.Name)
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := n.checkReady(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-s.Ended():
			return fmt.Errorf("node %s has exited with code %d before it was ready:\n%s", n.Name, s.ExitCode(), n.logTail())
		case <-ctx.Done():
			return fmt.Errorf("node %s is not ready after %v: %w\n%s", n.Name, limit, err, n.logTail())
		case <-tick.C:
		}
	}
}

// checkReady asks /ready once, for a few seconds at most: a request that meets a fault is repeated.
func (n *Node) checkReady(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL()+"/ready", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// URL is the base of the node's REST API, for clients in network.ClientPlace.
func (n *Node) URL() string {
	_, dial := n.Endpoint(APIPort)
	return "http://" + dial
}

// HTTPClient returns a client whose connections come from network.ClientPlace.
func (c *Cluster) HTTPClient(node string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.Network.Dial(ctx, network.ClientPlace, node, APIPort)
		},
		MaxIdleConnsPerHost: 64,
	}}
}

// Signal sends a signal to the server process alone.
func (n *Node) Signal(signal syscall.Signal) error {
	s := n.currentServer()
	if s == nil {
		return fmt.Errorf("node %s was not launched", n.Name)
	}
	return s.Signal(signal)
}

// Kill ends the server process by SIGKILL. Its worker and tasks live on.
func (n *Node) Kill() {
	if s := n.currentServer(); s != nil {
		s.Kill()
	}
}

// Stop ends the server process by SIGTERM, and after limit by SIGKILL with an error. It returns the
// exit code, which is -1 if the process was not yet ready to handle the signal.
func (n *Node) Stop(limit time.Duration) (code int, took time.Duration, err error) {
	code, took, err = n.currentServer().Stop(limit)
	if err != nil {
		err = fmt.Errorf("node %s: %w", n.Name, err)
	}
	return code, took, err
}

// KillMachine ends all processes of the node by SIGKILL, as a machine that fails: server, worker and
// tasks. Without namespaces the tasks live on until the next worker finds them.
func (n *Node) KillMachine() error {
	defer n.cluster.Interrupt()()
	n.Kill()
	for { // again: one that was about to fork has left a child
		processes := n.livingProcesses()
		if len(processes) == 0 {
			return nil
		}
		for _, pid := range processes {
			// A process may have ended since.
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		// A killed process is there until its parent has waited for it.
		if !testenv.Poll(Patience, func() bool { return !slices.ContainsFunc(processes, isAlive) }) {
			return fmt.Errorf("node %s: some of the processes %d survive SIGKILL", n.Name, processes)
		}
	}
}

// livingProcesses returns the living processes of the node, except its server without namespaces.
func (n *Node) livingProcesses() []int {
	processes, ok := n.cluster.Network.Processes(n.Name)
	if !ok {
		processes = testenv.Workers(n.data)
	}
	return slices.DeleteFunc(processes, func(pid int) bool { return !isAlive(pid) })
}

// isAlive reports whether a process exists and is not a zombie.
func isAlive(pid int) bool {
	state, err := testenv.ProcessState(pid)
	return err == nil && state != 'Z' && state != 'X'
}

// Freeze stops all processes of the node by SIGSTOP, as a machine that is suspended. Without
// namespaces it stops the server and the worker.
func (n *Node) Freeze() error {
	n.endFreeze = n.cluster.Interrupt()
	return n.signalAll(syscall.SIGSTOP)
}

// Thaw continues what Freeze has stopped.
func (n *Node) Thaw() error {
	if n.endFreeze != nil {
		defer n.endFreeze()
	}
	return n.signalAll(syscall.SIGCONT)
}

// signalAll signals all processes of the node. The server belongs to them in both forms of the network.
func (n *Node) signalAll(signal syscall.Signal) error {
	processes := n.livingProcesses()
	if s := n.currentServer(); s != nil && n.IsRunning() && !slices.Contains(processes, s.PID()) {
		processes = append(processes, s.PID())
	}
	for _, pid := range processes {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("node %s: signal %v to process %d: %w", n.Name, signal, pid, err)
		}
	}
	return nil
}

// CutPower cuts the power of the node: what was not synced is lost, and all processes end. The node
// can be launched again after that, with another boot ID.
//
// The disk goes first. Until the processes end, a moment later, their writes fail, and they may still
// tell others about that: so an answer can come out that a real power failure would have stopped, but
// never one about data that is lost.
func (n *Node) CutPower() error {
	if n.disk == nil {
		return n.unsupportedError("cut the power")
	}
	if err := n.disk.CutPower(); err != nil {
		return err
	}
	if err := n.KillMachine(); err != nil {
		return err
	}
	return errors.Join(n.boot.renew(), n.disk.Remount(Patience))
}

// clockFile has the duration by which the wall clock of the node is wrong.
func (n *Node) clockFile() string { return filepath.Join(n.cluster.base, n.Name+".clock") }

// SetClock makes the wall clock of the node's engine wrong by offset, at once and after a launch, too.
// The times of submissions stay right: they are of the HTTP server. It needs Options.Faulty.
func (n *Node) SetClock(offset time.Duration) error {
	if !n.cluster.options.Faulty {
		return fmt.Errorf("node %s: set the clock: the binary is without the tag faults: %w", n.Name, errors.ErrUnsupported)
	}
	next := n.clockFile() + ".new"
	if err := os.WriteFile(next, []byte(offset.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(next, n.clockFile())
}

// FailCalls makes calls of the file system fail in the node's server and worker; no faults end that.
// It needs Options.Faulty.
func (n *Node) FailCalls(calls ...faults.Fault) error {
	if !n.cluster.options.Faulty {
		return fmt.Errorf("node %s: fail calls: the binary is without the tag faults: %w", n.Name, errors.ErrUnsupported)
	}
	return faults.WriteScript(n.data+".faults", calls...)
}

// Wipe empties the disk of the node, whose processes have ended. A launch makes a new node of it, which
// may need arguments that say so: Launch takes them.
func (n *Node) Wipe() error {
	if n.IsRunning() {
		return fmt.Errorf("node %s runs: its data folder cannot be removed", n.Name)
	}
	if err := n.KillMachine(); err != nil {
		return err
	}
	return os.RemoveAll(n.data)
}

// FillDisk takes the room of the disk, except left bytes. FreeDisk gives it back.
func (n *Node) FillDisk(left int64) error {
	if n.disk == nil {
		return n.unsupportedError("fill the disk")
	}
	return n.disk.Fill(left)
}

// FreeDisk gives back the room that FillDisk took.
func (n *Node) FreeDisk() error {
	if n.disk == nil {
		return n.unsupportedError("free the disk")
	}
	return n.disk.Free()
}

// FailDisk makes the disk read-only at once, as the kernel does after an error of the device. The
// node needs RepairDisk before its next launch.
func (n *Node) FailDisk() error {
	if n.disk == nil {
		return n.unsupportedError("make the disk read-only")
	}
	return n.disk.FailReadOnly()
}

// RepairDisk ends all processes of the node and mounts the disk again, as it is on the device: after
// a restart of the machine, so the boot ID changes.
func (n *Node) RepairDisk() error {
	if n.disk == nil {
		return n.unsupportedError("mount the disk")
	}
	if err := n.KillMachine(); err != nil {
		return err
	}
	return errors.Join(n.boot.renew(), n.disk.Remount(Patience))
}

// StallDisk makes all writes wait until ResumeDisk. Signals do not end a process that waits for its
// disk, also not SIGKILL: resume the disk before the node is killed.
func (n *Node) StallDisk() error {
	if n.disk == nil {
		return n.unsupportedError("stall the disk")
	}
	return n.disk.Stall()
}

// ResumeDisk ends a stall.
func (n *Node) ResumeDisk() error {
	if n.disk == nil {
		return n.unsupportedError("resume the disk")
	}
	return n.disk.Resume()
}

// SlowDisk stalls the disk again and again until the context ends: for stalled, with a pause of
// between.
func (n *Node) SlowDisk(ctx context.Context, stalled, between time.Duration) error {
	for ctx.Err() == nil {
		if err := n.StallDisk(); err != nil {
			return err
		}
		sleepContext(ctx, stalled)
		if err := n.ResumeDisk(); err != nil {
			return err
		}
		sleepContext(ctx, between)
	}
	return nil
}

// unsupportedError is that of a fault which needs a disk of the node's own.
func (n *Node) unsupportedError(what string) error {
	return fmt.Errorf("node %s: %s: the data folder is a plain one: %w", n.Name, what, errors.ErrUnsupported)
}

// endAll ends all processes of the node, in the usual order if possible: the tasks of a worker end
// with it, also without namespaces.
func (n *Node) endAll() error {
	if n.disk != nil {
		_ = n.disk.Resume() // an error says that it was not stalled
	}
	_ = n.signalAll(syscall.SIGCONT)
	n.Kill()
	return errors.Join(testenv.EndWorkers(n.data, time.Second), n.KillMachine())
}

// maxLogTail bounds what is shown of a node's log.
const maxLogTail = 8000

// logTail returns the end of the logs of all servers of the node.
func (n *Node) logTail() string {
	n.mu.Lock()
	servers := append(slices.Clone(n.former), n.server)
	n.mu.Unlock()
	var text string
	for i, s := range servers {
		if s != nil {
			text += fmt.Sprintf("-- launch %d, process %d\n%s", i+1, s.PID(), s.Log())
		}
	}
	return text[max(0, len(text)-maxLogTail):]
}

// sleepContext waits for d, or for the end of the context.
func sleepContext(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
