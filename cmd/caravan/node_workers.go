package main

import (
	"net"
	"strings"
	"sync/atomic"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/http"
)

// welcomeWorkers lets workers without a node join, until the member closes.
func (n *node) welcomeWorkers(c Config) error {
	copies, err := n.member.Listen(cluster.KeepProtocol)
	if err != nil {
		return err
	}
	n.workers.ServeCopies(copies)
	joins, err := n.member.Listen(cluster.JoinProtocol)
	if err != nil {
		return err
	}
	terms := cluster.WorkerTerms{Lease: c.WorkerLease, Copies: c.LogCopies}
	go func() {
		for {
			conn, err := joins.Accept()
			if err != nil {
				return
			}
			go n.welcomeWorker(conn, terms)
		}
	}()
	return nil
}

// welcomeWorker serves a worker that has connected, until the connection ends.
func (n *node) welcomeWorker(conn net.Conn, terms cluster.WorkerTerms) {
	address := conn.RemoteAddr().String()
	id, err := n.member.WelcomeWorker(conn, terms)
	if err != nil {
		conn.Close()
		n.log.Debug("a worker has not joined", "address", address, "err", err)
		return
	}
	n.log.Info("a worker has joined", "worker", id, "address", address)
	n.workers.ServeJoined(id, address, conn)
}

// joinedWorkers returns what this node knows of the workers without a node.
func (n *node) joinedWorkers() (all []http.WorkerStatus) {
	for _, w := range n.workers.JoinedWorkers() {
		name, _, _ := strings.Cut(w.ID, ".")
		s := http.WorkerStatus{ID: w.ID, Name: name, Address: w.Address, State: "connected", Slots: http.Slots(w.Capacity),
			Taken: http.Slots(w.Taken.Amount), Running: w.Taken.Running, Waiting: w.Taken.Waiting}
		switch {
		case !w.IsConnected:
			s.State = "silent"
		case w.Draining:
			s.State = "draining"
		}
		all = append(all, s)
	}
	return all
}

// largestTask is what a task may ask for: the most that a node or a worker has. Until workers is set, it is what this
// node has.
type largestTask struct {
	own     workerpb.Amount
	workers atomic.Pointer[fleet.Fleet]
}

func (l *largestTask) amount() (cpuMillis, memoryBytes int64) {
	most := l.own
	if f := l.workers.Load(); f != nil {
		most = f.LargestCapacity()
	}
	return most.CPUMillis, most.MemoryBytes
}
