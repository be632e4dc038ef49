package access

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Hosts is the set of names that a request may ask a server for. A web page can make
// its own name resolve to a loopback address (DNS rebinding), but it cannot change
// the name in the Host header. A nil *Hosts allows every name.
type Hosts struct{ names map[string]struct{} }

// LoopbackHosts are the names of a server that listens on a loopback address.
func LoopbackHosts() []string { return []string{"localhost", "127.0.0.1", "::1"} }

// NewHosts returns the set of names. Each is a host name or an IP address, without
// a port.
func NewHosts(names ...string) (*Hosts, error) {
	h := &Hosts{names: make(map[string]struct{}, len(names))}
	for _, name := range names {
		canonical, err := ParseHostName(name)
		if err != nil {
			return nil, err
		}
		h.names[canonical] = struct{}{}
	}
	return h, nil
}

// ParseHostName returns the canonical form of a host name or IP address as a user
// writes it: lower case, without a final dot, an IPv6 address without brackets.
func ParseHostName(name string) (string, error) {
	bare := name
	if strings.HasPrefix(bare, "[") && strings.HasSuffix(bare, "]") {
		bare = bare[1 : len(bare)-1]
		if !strings.Contains(bare, ":") {
			return "", fmt.Errorf("%q is not a host name: brackets are for IPv6 addresses", name)
		}
	}
	if strings.Contains(bare, ":") {
		ip, err := netip.ParseAddr(bare)
		if err != nil || ip.Zone() != "" {
			return "", fmt.Errorf("%q is not a host name: write it without a port, scheme or IPv6 zone", name)
		}
		return ip.String(), nil
	}
	bare = strings.ToLower(strings.TrimSuffix(bare, "."))
	if !validName(bare) {
		return "", fmt.Errorf("%q is not a host name: want letters, digits, '-', '_' and '.'", name)
	}
	return bare, nil
}

// longestName is the longest host name that DNS has.
const longestName = 253

func validName(name string) bool {
	if name == "" || len(name) > longestName || strings.Contains(name, "..") || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// Allows tells whether a request may have this Host, or this authority in its
// target. Ports are not compared: a tunnel (ssh -L) may use another one, and a
// rebound name is refused on any port. It allocates nothing for names in the set.
func (h *Hosts) Allows(host []byte) bool {
	if h == nil {
		return true
	}
	name, ok := cutPort(host)
	if !ok || len(name) > longestName+1 {
		return false
	}
	var buf [longestName + 1]byte
	lower := buf[:len(name)]
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	if n := len(lower); n > 1 && lower[n-1] == '.' {
		lower = lower[:n-1]
	}
	if len(lower) > 2 && lower[0] == '[' {
		lower = lower[1 : len(lower)-1]
		if _, ok := h.names[string(lower)]; ok {
			return bytes.IndexByte(lower, ':') >= 0 // brackets are for IPv6
		}
		ip, err := netip.ParseAddr(string(lower)) // written in another way
		if err != nil || ip.Zone() != "" || !ip.Is6() {
			return false
		}
		_, ok := h.names[ip.String()]
		return ok
	}
	_, ok = h.names[string(lower)]
	return ok && bytes.IndexByte(lower, ':') < 0 // an IPv6 address needs its brackets
}

// cutPort takes the port, which may be empty, off a Host.
func cutPort(host []byte) (name []byte, ok bool) {
	end := len(host)
	for end > 0 && host[end-1] >= '0' && host[end-1] <= '9' {
		end--
	}
	switch {
	case end == 0 || host[end-1] != ':':
		name = host // it has no port
	case len(host)-end > 5:
		return nil, false
	default:
		name = host[:end-1]
	}
	if len(name) == 0 {
		return nil, false
	}
	if name[0] == '[' {
		return name, name[len(name)-1] == ']' && len(name) > 2
	}
	return name, true
}
