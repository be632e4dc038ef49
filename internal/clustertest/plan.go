package clustertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest/network"
)

// Fault is a kind of disturbance that begins, lasts and is undone.
type Fault string

const (
	KillServer  Fault = "kill the server"         // SIGKILL; launched again at the end
	StopServer  Fault = "stop the server"         // SIGTERM; launched again at the end
	KillMachine Fault = "kill the machine"        // server, worker and tasks; launched again
	PowerCut    Fault = "cut the power"           // KillMachine without what was not synced
	FreezeNode  Fault = "freeze the machine"      // SIGSTOP, SIGCONT
	IsolateNode Fault = "isolate the node"        // from all other nodes; clients reach it
	CutPair     Fault = "cut a pair"              // of nodes; others reach both
	CutOneWay   Fault = "cut one way"             // from a node to another one
	CutClients  Fault = "cut off the clients"     // from a node
	SlowLinks   Fault = "slow links"              // of a node: delay and jitter
	BadLinks    Fault = "bad links"               // of all nodes: loss, duplicates, reordering
	StallDisk   Fault = "stall the disk"          // writes wait
	FullDisk    Fault = "fill the disk"           // launched again if the server ended
	BreakDisk   Fault = "make the disk read-only" // mounted and launched again at the end
)

// processFaults, packetFaults and diskFaults are the kinds by what the machine must be able to do. The
// order of a list is a part of the meaning of a seed: append new kinds.
func processFaults() []Fault {
	return []Fault{KillServer, StopServer, KillMachine, FreezeNode, IsolateNode, CutPair, CutOneWay, CutClients, SlowLinks}
}

func packetFaults() []Fault { return []Fault{BadLinks} }

func diskFaults() []Fault { return []Fault{PowerCut, StallDisk, FullDisk, BreakDisk} }

// Kinds returns the faults that are possible, in a fixed order.
func (c Capabilities) Kinds() []Fault {
	kinds := processFaults()
	if c.Packets {
		kinds = append(kinds, packetFaults()...)
	}
	if c.Disks {
		kinds = append(kinds, diskFaults()...)
	}
	return kinds
}

// Step is one fault of a plan: it begins Pause after the end of the one before.
type Step struct {
	Fault Fault
	Node  string
	Other string // the second node of CutPair and CutOneWay
	Pause time.Duration
	Lasts time.Duration
}

func (s Step) String() string {
	other := ""
	if s.Other != "" {
		other = " and " + s.Other
	}
	return fmt.Sprintf("after %v: %s: %s%s, for %v", s.Pause, s.Fault, s.Node, other, s.Lasts)
}

// Plan is a sequence of faults, one at a time: a cluster of three survives each of them without losing
// its quorum. A node may still be catching up with the others when the next fault meets another node,
// so a plan finds clusters that call themselves healthy too early. Faults that a cluster need not
// survive, such as a second lost disk, and those that need other steps, such as Wipe, are no kinds of a
// random plan: a test makes them itself.
type Plan struct {
	Seed  uint64
	Steps []Step
}

// String lists the steps, with the seed that makes the same plan again.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d", p.Seed)
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "\n\t%s", s)
	}
	return b.String()
}

// PlanOptions bound the random choices of NewPlan.
type PlanOptions struct {
	Steps    int           // how many; default 5
	Kinds    []Fault       // required: Capabilities.Kinds, or a part of it
	MaxPause time.Duration // default 1 s
	MaxLasts time.Duration // default 3 s
}

// NewPlan makes a plan of random faults. The same arguments make the same plan, on every machine.
// CutPair and CutOneWay need two nodes.
func NewPlan(seed uint64, nodes []string, o PlanOptions) Plan {
	if o.Steps == 0 {
		o.Steps = 5
	}
	if o.MaxPause == 0 {
		o.MaxPause = time.Second
	}
	if o.MaxLasts == 0 {
		o.MaxLasts = 3 * time.Second
	}
	rng := rand.New(rand.NewPCG(seed, 12))
	p := Plan{Seed: seed}
	for range o.Steps {
		i := rng.IntN(len(nodes))
		s := Step{
			Fault: o.Kinds[rng.IntN(len(o.Kinds))],
			Node:  nodes[i],
			Pause: randomDuration(rng, o.MaxPause),
			Lasts: randomDuration(rng, o.MaxLasts),
		}
		// It is chosen always, so that a change of the kinds does not shift later choices.
		other := nodes[(i+1+rng.IntN(max(len(nodes)-1, 1)))%len(nodes)]
		if s.Fault == CutPair || s.Fault == CutOneWay {
			s.Other = other
		}
		p.Steps = append(p.Steps, s)
	}
	return p
}

// randomDuration returns whole milliseconds, from 1 to most.
func randomDuration(rng *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(1+rng.Int64N(most.Milliseconds())) * time.Millisecond
}

// RunPlan carries out a plan, and logs it first. It returns when the last fault is undone, or when
// the context ends: then the present fault is undone, too. Cluster.Revive waits for the nodes.
func (c *Cluster) RunPlan(ctx context.Context, p Plan) error {
	c.t.Helper()
	c.t.Logf("plan of faults: %v", p)
	for _, s := range p.Steps {
		sleepContext(ctx, s.Pause)
		if ctx.Err() != nil {
			return nil
		}
		if err := c.runStep(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// runStep begins and undoes one fault. Every fault may cut a worker off from its leaders.
func (c *Cluster) runStep(ctx context.Context, s Step) error {
	defer c.Interrupt()()
	err := c.beginFault(s)
	if err == nil {
		sleepContext(ctx, s.Lasts)
	}
	return errors.Join(err, c.undoFault(s))
}

// beginFault makes the disturbance of a step.
func (c *Cluster) beginFault(s Step) error {
	n := c.Node(s.Node)
	switch s.Fault {
	case KillServer:
		n.Kill()
	case StopServer:
		if n.IsRunning() {
			_, _, err := n.Stop(Patience)
			return err
		}
	case KillMachine:
		return n.KillMachine()
	case PowerCut:
		return n.CutPower()
	case FreezeNode:
		return n.Freeze()
	case IsolateNode:
		c.Network.IsolateNode(s.Node)
	case CutPair:
		c.Network.Partition([]string{s.Node}, []string{s.Other})
	case CutOneWay:
		c.Network.SetFaults(s.Node, s.Other, network.Faults{Cut: true})
	case CutClients:
		c.Network.Partition([]string{s.Node}, []string{network.ClientPlace})
	case SlowLinks:
		f := network.Faults{Delay: 50 * time.Millisecond, Jitter: 50 * time.Millisecond}
		for _, place := range c.Network.Places() {
			if place != s.Node {
				c.Network.SetFaults(s.Node, place, f)
				c.Network.SetFaults(place, s.Node, f)
			}
		}
	case BadLinks:
		c.Network.SetAllFaults(network.Faults{Jitter: 5 * time.Millisecond, Loss: 0.02, Duplicate: 0.02, Reorder: 0.02})
	case StallDisk:
		return n.StallDisk()
	case FullDisk:
		return n.FillDisk(0)
	case BreakDisk:
		return n.FailDisk()
	default:
		return fmt.Errorf("unknown fault %q", s.Fault)
	}
	return nil
}

// undoFault ends a fault, and launches the node again if its server has ended.
func (c *Cluster) undoFault(s Step) error {
	n := c.Node(s.Node)
	var err error
	switch s.Fault {
	case FreezeNode:
		err = n.Thaw()
	case IsolateNode, CutPair, CutOneWay, CutClients, SlowLinks, BadLinks:
		c.Network.Heal()
	case StallDisk:
		err = n.ResumeDisk()
	case FullDisk:
		err = n.FreeDisk()
	case BreakDisk:
		err = n.RepairDisk()
	case KillServer, StopServer, KillMachine, PowerCut:
	}
	if err == nil && !n.IsRunning() {
		err = n.Launch()
	}
	return err
}
