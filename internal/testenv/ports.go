package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports that tests may leave and take again lie below those that the kernel gives to connections and to
// listeners with port 0 (32768 and up by default). Packages are tested in processes of their own at the same
// time, so each process has a block of ports to itself.
const (
	firstPort     = 10_000
	blocks        = 200
	portsPerBlock = 100
)

// ports are the port numbers of this process. The block is held by a listener on an abstract socket with its
// number, which the kernel closes with the process.
var ports struct {
	sync.Mutex
	held  net.Listener
	first int
	next  int
}

// Listen listens on a TCP port of the loopback interface that stays free for this process after the listener
// is closed: no other process listens or dials from there. A port that the kernel chooses may go to any other.
func Listen() (net.Listener, error) {
	ports.Lock()
	defer ports.Unlock()
	if err := holdBlock(); err != nil {
		return nil, err
	}
	var err error
	for range portsPerBlock {
		port := ports.first + ports.next
		ports.next = (ports.next + 1) % portsPerBlock
		var l net.Listener
		if l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("all %d ports of this process are in use: %w", portsPerBlock, err)
}

// holdBlock takes a block of ports when the first is asked for.
func holdBlock() error {
	if ports.held != nil {
		return nil
	}
	start := rand.IntN(blocks)
	for i := range blocks {
		block := (start + i) % blocks
		// The process has the listener until it ends.
		if l, err := net.Listen("unix", fmt.Sprintf("@caravan-test-ports-%d", block)); err == nil {
			ports.held, ports.first = l, firstPort+block*portsPerBlock
			return nil
		}
	}
	return errors.New("other processes have all blocks of ports")
}

// FreeAddress returns an address that Listen has left again: for a server that is told where to listen, or for
// calls that find no server. The next hundred calls of this process return others.
func FreeAddress() (string, error) {
	l, err := Listen()
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
