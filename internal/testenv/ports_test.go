package testenv

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestFreeAddress: addresses differ, are outside of the kernel's range and can be listened at again.
func TestFreeAddress(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	lowest, err := strconv.Atoi(strings.Fields(string(text))[0])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 50 {
		address, err := FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		if seen[address] {
			t.Errorf("%s twice", address)
		}
		seen[address] = true
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if port := l.Addr().(*net.TCPAddr).Port; port >= lowest {
			t.Errorf("the kernel gives port %d to others: its range begins at %d", port, lowest)
		}
	}
	// Ports that are in use are skipped.
	for range 49 {
		l, err := Listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if seen[l.Addr().String()] {
			t.Errorf("%s is in use", l.Addr())
		}
	}
}
