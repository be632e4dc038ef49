package network

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// packetSwitch is the form with namespaces. One goroutine for each place reads the packets that its
// processes send, and one writes the packets that are due later.
//
// The order of packets on a link is kept, whatever their jitter: TCP takes packets out of order for
// signs of loss, and a real network seldom has them. Reorder makes exceptions. Packets of different
// links may overtake each other.
//
// One lock serves all links. It is held over the write to a device, which takes microseconds and
// does not block: so packets without delay keep their order, too.
type packetSwitch struct {
	places []*namespace // place i has the address 10.77.0.(i+1)
	names  []string

	mu      sync.Mutex
	rng     *rand.Rand
	faults  map[[2]int]Faults
	lastDue map[[2]int]time.Time // of the packets that keep their order
	delayed delayedPackets
	number  uint64        // of delayed packets so far
	wake    chan struct{} // the head of delayed may have changed

	stopped    chan struct{}
	goroutines sync.WaitGroup
}

// delayedPacket is a packet on its way. Packets that are due at the same time keep their order.
type delayedPacket struct {
	due    time.Time
	number uint64
	to     int
	data   []byte
}

// delayedPackets is a heap.
type delayedPackets []delayedPacket

func (d delayedPackets) Len() int { return len(d) }
func (d delayedPackets) Less(i, j int) bool {
	if !d[i].due.Equal(d[j].due) {
		return d[i].due.Before(d[j].due)
	}
	return d[i].number < d[j].number
}
func (d delayedPackets) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *delayedPackets) Push(x any)   { *d = append(*d, x.(delayedPacket)) }
func (d *delayedPackets) Pop() any {
	last := (*d)[len(*d)-1]
	(*d)[len(*d)-1] = delayedPacket{}
	*d = (*d)[:len(*d)-1]
	return last
}

// The addresses are the same in every network: namespaces do not see those of others.
var switchPrefix = netip.MustParsePrefix("10.77.0.0/24")

func placeAddress(index int) netip.Addr {
	a := switchPrefix.Addr().As4()
	a[3] = byte(index + 1)
	return netip.AddrFrom4(a)
}

// newPacketSwitch makes the namespaces and begins to switch. An error says what the machine lacks.
func newPacketSwitch(names []string, seed uint64) (*packetSwitch, error) {
	s := &packetSwitch{
		names:   names,
		rng:     rand.New(rand.NewPCG(seed, 0)),
		faults:  map[[2]int]Faults{},
		lastDue: map[[2]int]time.Time{},
		wake:    make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
	for i := range names {
		ns, err := newNamespace(netip.PrefixFrom(placeAddress(i), switchPrefix.Bits()))
		if err != nil {
			s.closeNamespaces()
			return nil, err
		}
		s.places = append(s.places, ns)
	}
	for i := range s.places {
		s.goroutines.Go(func() { s.readPackets(i) })
	}
	s.goroutines.Go(s.writeDelayed)
	return s, nil
}

// readPackets switches what the processes of a place send, until its device is closed.
func (s *packetSwitch) readPackets(from int) {
	packet := make([]byte, deviceMTU)
	for {
		n, err := s.places[from].device.Read(packet)
		if err != nil {
			return
		}
		s.forwardPacket(from, packet[:n])
	}
}

// forwardPacket sends one packet on. It drops packets for unknown addresses, and what is not IPv4: the
// kernel looks for IPv6 routers.
func (s *packetSwitch) forwardPacket(from int, packet []byte) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return
	}
	destination := netip.AddrFrom4([4]byte(packet[16:20]))
	to := int(packet[19]) - 1
	if !switchPrefix.Contains(destination) || to < 0 || to >= len(s.places) || to == from {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]int{from, to}
	f := s.faults[key]
	if f.Cut || s.drawChance(f.Loss) {
		return
	}
	copies := 1
	if s.drawChance(f.Duplicate) {
		copies = 2
	}
	now := time.Now()
	for range copies {
		due := now.Add(f.Delay)
		if f.Jitter > 0 {
			due = due.Add(time.Duration(s.rng.Int64N(int64(f.Jitter))))
		}
		if s.drawChance(f.Reorder) {
			due = due.Add(time.Duration(s.rng.Int64N(int64(reorderDelay))))
		} else {
			if last := s.lastDue[key]; last.After(due) {
				due = last
			}
			s.lastDue[key] = due
		}
		if due.After(now) {
			s.delayPacket(due, to, packet)
		} else {
			s.deliverPacket(to, packet)
		}
	}
}

// drawChance decides by lot. It draws only for real shares, so the seed alone decides on the packets of
// a disturbed link, as far as the timing of the programs repeats.
func (s *packetSwitch) drawChance(share float64) bool { return share > 0 && s.rng.Float64() < share }

// delayPacket keeps a copy of a packet until it is due.
func (s *packetSwitch) delayPacket(due time.Time, to int, packet []byte) {
	s.number++
	heap.Push(&s.delayed, delayedPacket{due, s.number, to, slices.Clone(packet)})
	if s.delayed[0].number == s.number {
		select {
		case s.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

// deliverPacket writes a packet to a device. A packet that the device does not take is lost, as on a real
// network: a device refuses packets while it is closed.
func (s *packetSwitch) deliverPacket(to int, packet []byte) { _, _ = s.places[to].device.Write(packet) }

// writeDelayed writes the packets that are due, until the switch stops.
func (s *packetSwitch) writeDelayed() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.stopped:
			return
		case <-s.wake:
		case <-timer.C:
		}
		s.mu.Lock()
		for len(s.delayed) > 0 && !s.delayed[0].due.After(time.Now()) {
			p := heap.Pop(&s.delayed).(delayedPacket)
			s.deliverPacket(p.to, p.data)
		}
		if len(s.delayed) > 0 {
			timer.Reset(time.Until(s.delayed[0].due))
		}
		s.mu.Unlock()
	}
}

func (s *packetSwitch) placeIndex(place string) int {
	i := slices.Index(s.names, place)
	if i < 0 {
		panic(fmt.Sprintf("network: unknown place %q", place))
	}
	return i
}

// setFaults changes what happens to later packets. A cut also drops the delayed packets of the link:
// no packet of it arrives once this has returned.
func (s *packetSwitch) setFaults(from, to string, f Faults) {
	key := [2]int{s.placeIndex(from), s.placeIndex(to)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[key] = f
	if f.Cut { // also what is on its way
		s.delayed = slices.DeleteFunc(s.delayed, func(p delayedPacket) bool {
			return p.to == key[1] && netip.AddrFrom4([4]byte(p.data[12:16])) == placeAddress(key[0])
		})
		heap.Init(&s.delayed)
	}
}

func (s *packetSwitch) endpointOf(place string, port int) (listen, dial string, err error) {
	address := net.JoinHostPort(placeAddress(s.placeIndex(place)).String(), strconv.Itoa(port))
	return address, address, nil
}

func (s *packetSwitch) enterPlace(place string) error { return s.places[s.placeIndex(place)].join() }

func (s *packetSwitch) setProcess(string, int) {}

func (s *packetSwitch) namespaceID(place string) string { return s.places[s.placeIndex(place)].id }

// dialPlace opens the socket in the namespace: a socket belongs to that of the thread that makes it.
func (s *packetSwitch) dialPlace(ctx context.Context, from, to string, port int) (conn net.Conn, err error) {
	_, address, err := s.endpointOf(to, port)
	if err != nil {
		return nil, err
	}
	err = s.places[s.placeIndex(from)].runInside(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp4", address)
		return err
	})
	return conn, err
}

func (s *packetSwitch) close() error {
	close(s.stopped)
	err := s.closeNamespaces()
	s.goroutines.Wait()
	return err
}

func (s *packetSwitch) closeNamespaces() (err error) {
	for _, p := range s.places {
		err = errors.Join(err, p.close())
	}
	return err
}
