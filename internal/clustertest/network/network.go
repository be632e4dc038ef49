package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ClientPlace is the place of the clients: those of this process, and command lines.
const ClientPlace = "client"

// Faults are the disturbances of one link. The zero value is an undisturbed link.
type Faults struct {
	Cut       bool          // drops everything
	Delay     time.Duration // of each packet
	Jitter    time.Duration // added to Delay: a random part of it
	Loss      float64       // share of packets that are dropped
	Duplicate float64       // share of packets that arrive twice
	Reorder   float64       // share of packets that arrive later than their successors
}

// reorderDelay is how much later a reordered packet arrives at most, beyond its Delay.
const reorderDelay = 10 * time.Millisecond

func (f Faults) String() string {
	if f.Cut {
		return "cut"
	}
	return fmt.Sprintf("delay %v+%v, loss %.1f%%, duplicates %.1f%%, reordered %.1f%%", f.Delay, f.Jitter, f.Loss*100, f.Duplicate*100, f.Reorder*100)
}

// Options configure Open. The zero value is right for most tests.
type Options struct {
	Seed    uint64 // of the random choices for packets
	Proxies bool   // use the form with proxies even where namespaces are possible
}

// Network connects places. Its methods are safe for concurrent use.
type Network struct {
	places      []string
	description string
	form        networkForm

	mu     sync.Mutex
	faults map[link]Faults // of the disturbed links
}

// link is one direction between two places.
type link struct{ from, to string }

// networkForm is one of the two ways to make a network.
type networkForm interface {
	// endpointOf returns where a process of the place listens for a port, and where others dial it.
	endpointOf(place string, port int) (listen, dial string, err error)
	enterPlace(place string) error
	setProcess(place string, pid int)
	namespaceID(place string) string
	dialPlace(ctx context.Context, from, to string, port int) (net.Conn, error)
	setFaults(from, to string, f Faults)
	close() error
}

// Open makes a network between the nodes and ClientPlace. It always succeeds, in one of the forms.
func Open(nodes []string, o Options) *Network {
	n := &Network{places: append(slices.Clone(nodes), ClientPlace), faults: map[link]Faults{}}
	if !o.Proxies {
		s, err := newPacketSwitch(n.places, o.Seed)
		if err == nil {
			n.form, n.description = s, "network namespaces with TUN devices, switched in this process"
			return n
		}
		n.description = fmt.Sprintf("TCP proxies on the loopback device, because network namespaces are not possible here: %v", err)
	} else {
		n.description = "TCP proxies on the loopback device, as requested"
	}
	n.form = newProxyForm(o.Seed)
	return n
}

// Describe says which form the network has, and why.
func (n *Network) Describe() string { return n.description }

// HasPackets reports whether the network has the form with namespaces: packets are lost, duplicated
// and reordered, and a cut is silent.
func (n *Network) HasPackets() bool {
	_, ok := n.form.(*packetSwitch)
	return ok
}

// Places returns the nodes, and then ClientPlace.
func (n *Network) Places() []string { return slices.Clone(n.places) }

// Endpoint returns the address (host:port) where the process of a node must listen for a port, and
// the one where processes of other places reach it. Any number names a port; the addresses have the
// same one only in the form with namespaces.
func (n *Network) Endpoint(node string, port int) (listen, dial string, err error) {
	return n.form.endpointOf(node, port)
}

// EnterPlace moves the calling thread to a place, for a process to be started on it. The caller has
// locked its goroutine to the thread (runtime.LockOSThread) and never unlocks it, so that the thread
// ends with the goroutine and is not used for anything else. In the form with proxies the
// thread stays where it is.
func (n *Network) EnterPlace(place string) error { return n.form.enterPlace(place) }

// SetProcess makes the process ID of a node known, so that its connections are attributed to its
// place.
func (n *Network) SetProcess(place string, pid int) { n.form.setProcess(place, pid) }

// NamespaceID names the network namespace of a place as /proc/PID/ns/net reads for the processes in
// it; "" in the form with proxies.
func (n *Network) NamespaceID(place string) string { return n.form.namespaceID(place) }

// Processes returns the processes of a place: those in its network namespace, with zombies. ok is
// false in the form with proxies, where they cannot be told from others.
func (n *Network) Processes(place string) (pids []int, ok bool) {
	id := n.NamespaceID(place)
	if id == "" {
		return nil, false
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range links {
		if name, err := os.Readlink(path); err == nil && name == id {
			if pid, err := strconv.Atoi(strings.Split(path, "/")[2]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, true
}

// Dial connects from a place to a port of a node, over the disturbed link.
func (n *Network) Dial(ctx context.Context, from, to string, port int) (net.Conn, error) {
	return n.form.dialPlace(ctx, from, to, port)
}

// Close ends the network. Connections break.
func (n *Network) Close() error { return n.form.close() }

// SetFaults disturbs one direction between two places. Faults replace those that the link had.
func (n *Network) SetFaults(from, to string, f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.setFaultsLocked(link{from, to}, f)
}

func (n *Network) setFaultsLocked(l link, f Faults) {
	if f == (Faults{}) {
		delete(n.faults, l)
	} else {
		n.faults[l] = f
	}
	n.form.setFaults(l.from, l.to, f)
}

// SetAllFaults disturbs all links alike.
func (n *Network) SetAllFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.eachLink(func(l link) { n.setFaultsLocked(l, f) })
}

func (n *Network) eachLink(yield func(link)) {
	for _, from := range n.places {
		for _, to := range n.places {
			if from != to {
				yield(link{from, to})
			}
		}
	}
}

// Partition cuts all links between different groups, in both directions. Links within a group, and
// those of places in no group, stay as they are: a partial partition leaves a place out.
func (n *Network) Partition(groups ...[]string) {
	group := map[string]int{}
	for i, members := range groups {
		for _, place := range members {
			group[place] = i + 1
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.eachLink(func(l link) {
		if a, b := group[l.from], group[l.to]; a != 0 && b != 0 && a != b {
			n.setFaultsLocked(l, Faults{Cut: true})
		}
	})
}

// IsolateNode cuts a node off from all other nodes. Clients still reach it.
func (n *Network) IsolateNode(node string) {
	others := slices.DeleteFunc(n.Places(), func(p string) bool { return p == node || p == ClientPlace })
	n.Partition([]string{node}, others)
}

// Heal removes all faults.
func (n *Network) Heal() { n.SetAllFaults(Faults{}) }
