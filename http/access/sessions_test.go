package access_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/http/access"
)

func TestRate(t *testing.T) {
	r := access.NewRate(3, 2*time.Second)
	now := time.Now()
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")
	for i := range 5 {
		if got := r.Allow(a, now); got != (i < 3) {
			t.Errorf("attempt %d: %v", i, got)
		}
	}
	if !r.Allow(b, now) {
		t.Error("another address has its own bound")
	}
	if r.Allow(a, now.Add(time.Second)) || !r.Allow(a, now.Add(2*time.Second)) || r.Allow(a, now.Add(2*time.Second)) {
		t.Error("one more per interval")
	}
	for i := range 3 {
		r.Allow(netip.AddrFrom16([16]byte{0x20, 1, 8: byte(i)}), now)
	}
	if r.Allow(netip.AddrFrom16([16]byte{0x20, 1, 15: 9}), now) {
		t.Error("addresses of one IPv6 network share a bound")
	}
	// Beyond the remembered addresses, an attacker with many addresses gets a single bound.
	allowed := 0
	for i := range 20_000 {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], uint32(i)+1<<24)
		if r.Allow(netip.AddrFrom4(ip), now) {
			allowed++
		}
	}
	if allowed > 10_003 {
		t.Errorf("%d attempts at once", allowed)
	}
	if !r.Allow(netip.MustParseAddr("198.51.100.7"), now.Add(time.Hour)) {
		t.Error("what is over is not forgotten")
	}
}
