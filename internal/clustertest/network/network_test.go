package network_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest/network"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// connectVariable makes this program a process that connects to an address and reads a line.
const connectVariable = "NETWORK_TEST_CONNECT"

func TestMain(m *testing.M) {
	if address := os.Getenv(connectVariable); address != "" {
		connect(address)
	}
	testenv.VerifyNoLeaks(m)
}

// connect waits for a line of its input, connects, and prints what the other side answers.
func connect(address string) {
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	conn, err := net.Dial("tcp4", address)
	if err == nil {
		_, err = fmt.Fprintln(conn, "hello")
	}
	var line string
	if err == nil {
		line, err = bufio.NewReader(conn).ReadString('\n')
	}
	fmt.Println(line, err)
	os.Exit(0)
}

const port = 2503

// eachForm runs a test on both forms of a network with three nodes. Each node has a server that
// sends back what it gets.
func eachForm(t *testing.T, test func(*testing.T, *network.Network)) {
	for _, proxies := range []bool{false, true} {
		t.Run(fmt.Sprintf("proxies=%v", proxies), func(t *testing.T) { test(t, open(t, proxies)) })
	}
}

func open(t *testing.T, proxies bool) *network.Network {
	t.Helper()
	n := network.Open([]string{"n1", "n2", "n3"}, network.Options{Seed: 1, Proxies: proxies})
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if !proxies && !n.HasPackets() {
		t.Skip(n.Describe())
	}
	for _, node := range []string{"n1", "n2", "n3"} {
		serveEcho(t, n, node)
	}
	return n
}

// inPlace runs fn on a thread of a place.
func inPlace(t *testing.T, n *network.Network, place string, fn func() error) {
	t.Helper()
	err := testenv.OnOwnThread(func() error {
		if err := n.EnterPlace(place); err != nil {
			return err
		}
		return fn()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func serveEcho(t *testing.T, n *network.Network, node string) {
	t.Helper()
	address, _, err := n.Endpoint(node, port)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	inPlace(t, n, node, func() (err error) { l, err = net.Listen("tcp4", address); return err })
	// A cut may keep the ends of connections from the server.
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); cancel(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			serving.Go(func() {
				defer conn.Close()
				defer stop()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
}

func dial(t *testing.T, n *network.Network, from, to string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	conn, err := n.Dial(ctx, from, to, port)
	if err != nil {
		t.Fatalf("from %s to %s: %v", from, to, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// echo sends text and waits for it to come back, at most for limit.
func echo(conn net.Conn, text string, limit time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if string(back) != text {
		return fmt.Errorf("%q came back as %q", text, back)
	}
	return nil
}

// short is how long a test waits for what must not arrive.
const short = 250 * time.Millisecond

// TestPlacesReachEachOther: from each place to each node, with more bytes than fit into a packet.
func TestPlacesReachEachOther(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		t.Log(n.Describe())
		for _, from := range n.Places() {
			for _, to := range []string{"n1", "n2", "n3"} {
				if from != to {
					if err := echo(dial(t, n, from, to), strings.Repeat("0123456789", 10_000), testenv.Patience); err != nil {
						t.Errorf("from %s to %s: %v", from, to, err)
					}
				}
			}
		}
	})
}

// TestPartition: nodes of different groups lose each other, in open and in new connections; a node
// in no group reaches both; and after Heal all is as before.
func TestPartition(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		conn := dial(t, n, "n1", "n2")
		if err := echo(conn, "before", testenv.Patience); err != nil {
			t.Fatal(err)
		}
		n.Partition([]string{"n1"}, []string{"n2"})
		limit := testenv.Patience
		if n.HasPackets() {
			limit = short
		}
		if err := echo(conn, "during", limit); err == nil {
			t.Error("a connection survives the cut")
		} else if n.HasPackets() != errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a cut is %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), short)
		defer cancel()
		if second, err := n.Dial(ctx, "n2", "n1", port); err == nil {
			if err := echo(second, "during", short); err == nil {
				t.Error("a new connection crosses the cut")
			}
			second.Close()
		}
		for _, pair := range [][2]string{{"n1", "n3"}, {"n3", "n2"}, {"client", "n1"}, {"client", "n2"}} {
			if err := echo(dial(t, n, pair[0], pair[1]), "around", testenv.Patience); err != nil {
				t.Errorf("from %s to %s: %v", pair[0], pair[1], err)
			}
		}
		n.Heal()
		if err := echo(dial(t, n, "n1", "n2"), "after", testenv.Patience); err != nil {
			t.Errorf("after the cut: %v", err)
		}
		if n.HasPackets() { // TCP sends again what was dropped
			if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, len("during"))
			if _, err := io.ReadFull(conn, back); err != nil || string(back) != "during" {
				t.Errorf("the open connection goes on with %q, %v", back, err)
			}
		}
	})
}

// TestIsolate: a node loses the other nodes and keeps its clients.
func TestIsolate(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		inner, outer := dial(t, n, "n3", "n2"), dial(t, n, "n1", "n2")
		n.IsolateNode("n2")
		for _, conn := range []net.Conn{inner, outer} {
			if err := echo(conn, "x", short); err == nil {
				t.Error("a node reaches the isolated one")
			}
		}
		if err := echo(dial(t, n, "client", "n2"), "x", testenv.Patience); err != nil {
			t.Errorf("a client does not reach the isolated node: %v", err)
		}
		if err := echo(dial(t, n, "n1", "n3"), "x", testenv.Patience); err != nil {
			t.Errorf("the others do not reach each other: %v", err)
		}
	})
}

// TestOneWayCut: bytes go in one direction only.
func TestOneWayCut(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		listen, _, err := n.Endpoint("n2", port+1)
		if err != nil {
			t.Fatal(err)
		}
		var l net.Listener
		inPlace(t, n, "n2", func() (err error) { l, err = net.Listen("tcp4", listen); return err })
		defer l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		near, err := n.Dial(ctx, "n1", "n2", port+1)
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		n.SetFaults("n1", "n2", network.Faults{Cut: true})
		send := func(from, to net.Conn, text string, limit time.Duration) error {
			if _, err := io.WriteString(from, text); err != nil {
				return err
			}
			if err := to.SetReadDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			_, err := io.ReadFull(to, make([]byte, len(text)))
			return err
		}
		if err := send(far, near, "back", testenv.Patience); err != nil {
			t.Errorf("against the cut: %v", err)
		}
		if err := send(near, far, "there", short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("along the cut: %v", err)
		}
		n.Heal()
		if err := send(near, far, "again", testenv.Patience); err != nil {
			t.Errorf("after the cut: %v", err)
		}
	})
}

// TestDelay: a round trip takes the delays of both directions.
func TestDelay(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		conn := dial(t, n, "n1", "n2")
		n.SetFaults("n1", "n2", network.Faults{Delay: 60 * time.Millisecond, Jitter: 20 * time.Millisecond})
		n.SetFaults("n2", "n1", network.Faults{Delay: 30 * time.Millisecond})
		for range 3 {
			begin := time.Now()
			if err := echo(conn, "x", testenv.Patience); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took < 90*time.Millisecond {
				t.Errorf("a round trip takes %v", took)
			}
		}
		n.Heal()
		// The best of many: a busy machine delays some.
		testenv.RepeatWithin(t, testenv.Patience, "a round trip without delay takes less than 30 ms", func() bool {
			begin := time.Now()
			if err := echo(conn, "x", testenv.Patience); err != nil {
				t.Fatal(err)
			}
			return time.Since(begin) < 30*time.Millisecond
		})
	})
}

// TestPacketFaults: packets are lost, duplicated and reordered, in the given shares.
func TestPacketFaults(t *testing.T) {
	const packets = 2000
	n := open(t, false)
	var receiver, sender *net.UDPConn
	listen, address, err := n.Endpoint("n2", port)
	if err != nil {
		t.Fatal(err)
	}
	inPlace(t, n, "n2", func() error {
		c, err := net.ListenPacket("udp4", listen)
		if err == nil {
			receiver = c.(*net.UDPConn)
		}
		return err
	})
	defer receiver.Close()
	inPlace(t, n, "n1", func() error {
		c, err := net.Dial("udp4", address)
		if err == nil {
			sender = c.(*net.UDPConn)
		}
		return err
	})
	defer sender.Close()
	base := uint32(0) // of the numbers of a round: a late packet of another round is not counted
	for name, c := range map[string]struct {
		faults                        network.Faults
		lost, twice, late             int // per 1,000
		lostAtMost, twiceMost, lateMx int
	}{
		"undisturbed": {},
		"loss":        {faults: network.Faults{Loss: 0.2}, lost: 150, lostAtMost: 250},
		"duplicates":  {faults: network.Faults{Duplicate: 0.2}, twice: 150, twiceMost: 250},
		// On a busy machine the packet that ends the round may overtake late ones, which then count as lost.
		"reordered": {faults: network.Faults{Reorder: 0.05}, late: 10, lateMx: 80, lostAtMost: 5},
	} {
		t.Run(name, func(t *testing.T) {
			n.SetFaults("n1", "n2", c.faults)
			defer n.Heal()
			base += 10 * packets
			begin, last := base, base+packets
			seen, late := map[uint32]int{}, 0
			var received atomic.Uint32 // the highest number so far
			done := make(chan error, 1)
			go func() {
				highest := uint32(0)
				packet := make([]byte, 64)
				for {
					if _, err := receiver.Read(packet); err != nil {
						done <- err
						return
					}
					number := binary.BigEndian.Uint32(packet)
					if number == last {
						done <- nil
						return
					}
					if number < begin {
						continue
					}
					if seen[number]++; number < highest && seen[number] == 1 {
						late++
					}
					highest = max(highest, number)
					received.Store(highest)
				}
			}()
			if err := receiver.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
				t.Fatal(err)
			}
			for number := range uint32(packets) {
				// The queues of devices and sockets overflow when the receiver is too far behind.
				if !testenv.Poll(testenv.Patience, func() bool { return received.Load()+50 > begin+number || number < 50 }) {
					t.Fatalf("after %d packets the receiver is at %d", number, received.Load())
				}
				if err := binary.Write(sender, binary.BigEndian, begin+number); err != nil {
					t.Fatal(err)
				}
			}
			n.Heal()
			timer := time.NewTimer(short) // reordered packets are on their way
			<-timer.C
			if !testenv.Poll(testenv.Patience, func() bool {
				_ = binary.Write(sender, binary.BigEndian, last)
				return len(done) > 0
			}) {
				t.Fatal("the last packet does not arrive")
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			twice := 0
			for _, times := range seen {
				if times > 1 {
					twice++
				}
			}
			lost := packets - len(seen)
			t.Logf("of %d packets %d were lost, %d came twice, %d came late", packets, lost, twice, late)
			for what, share := range map[string][3]int{"lost": {lost, c.lost, c.lostAtMost}, "twice": {twice, c.twice, c.twiceMost}, "late": {late, c.late, c.lateMx}} {
				if share[0]*1000 < share[1]*packets || share[0]*1000 > share[2]*packets {
					t.Errorf("%s: %d of %d, want %d to %d of 1,000", what, share[0], packets, share[1], share[2])
				}
			}
		})
	}
}

// TestTCPSurvivesBadLinks: a stream arrives whole over links that lose, duplicate and reorder.
func TestTCPSurvivesBadLinks(t *testing.T) {
	n := open(t, false)
	n.SetAllFaults(network.Faults{Delay: time.Millisecond, Jitter: 3 * time.Millisecond, Loss: 0.02, Duplicate: 0.05, Reorder: 0.05})
	if err := echo(dial(t, n, "client", "n1"), strings.Repeat("0123456789", 5_000), testenv.Patience); err != nil {
		t.Error(err)
	}
}

// TestProcessesAreAttributed: the connections of a process belong to its place, in both forms.
func TestProcessesAreAttributed(t *testing.T) {
	eachForm(t, func(t *testing.T, n *network.Network) {
		_, address, err := n.Endpoint("n2", port)
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []bool{false, true} {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), connectVariable+"="+address)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			cmd.Stdout = &out
			inPlace(t, n, "n1", cmd.Start)
			n.SetProcess("n1", cmd.Process.Pid)
			if cut {
				n.Partition([]string{"n1"}, []string{"n2"})
			}
			stdin.Close() // now it connects
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if cut && n.HasPackets() { // it would try for minutes
				timer := time.NewTimer(short)
				select {
				case <-ended:
				case <-timer.C:
					_ = cmd.Process.Kill()
					<-ended
				}
				timer.Stop()
			} else if err := testenv.Receive(t, "the end of the process", ended); err != nil {
				t.Fatal(err)
			}
			if reached := strings.Contains(out.String(), "hello"); reached == cut {
				t.Errorf("cut: %v; the process says %q", cut, out.String())
			}
		}
	})
}

// TestNetworksDoNotCollide: two networks at a time have the same addresses and do not meet.
func TestNetworksDoNotCollide(t *testing.T) {
	eachForm(t, func(t *testing.T, first *network.Network) {
		second := open(t, !first.HasPackets())
		first.IsolateNode("n1")
		if err := echo(dial(t, second, "n2", "n1"), "x", testenv.Patience); err != nil {
			t.Errorf("the second network has the faults of the first: %v", err)
		}
	})
}
