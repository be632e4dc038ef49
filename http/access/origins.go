package access

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Two sets decide which requests of browsers are served: Hosts by the name under which the browser
// reached the server, and Origins by the page that caused the request. Neither stops a program, which
// can send any header; tokens are for programs.

// Hosts is the set of host names that a server accepts. A web page can make its own name resolve
// to a loopback address (DNS rebinding), but it cannot change the name in the Host header. A nil
// *Hosts accepts every name.
type Hosts struct{ hostNames map[string]struct{} }

// LoopbackHosts returns the names of a server that listens on a loopback address.
func LoopbackHosts() []string { return []string{"localhost", "127.0.0.1", "::1"} }

// NewHosts returns a set of names. Each is a host name or an IP address, without a port. Without names
// the set is empty, and refuses every request.
func NewHosts(names ...string) (*Hosts, error) {
	h := &Hosts{hostNames: make(map[string]struct{}, len(names))}
	for _, name := range names {
		canonical, err := ParseHostName(name)
		if err != nil {
			return nil, err
		}
		h.hostNames[canonical] = struct{}{}
	}
	return h, nil
}

// ParseHostName returns the canonical form of a host name or IP address as a user writes it: lower
// case, without a final dot, an IPv6 address without brackets. "[::1]", "::1" and "0:0:0:0:0:0:0:1" all
// give "::1"; "LOCALHOST." gives "localhost". A port, a scheme or a zone is an error.
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
	if !isHostName(bare) {
		return "", fmt.Errorf("%q is not a host name: want letters, digits, '-', '_' and '.'", name)
	}
	return bare, nil
}

// maxHostName is the longest host name in DNS.
const maxHostName = 253

// isHostName tells whether a name in lower case may be a host name. The underscore is not a letter of
// DNS host names, but container networks use it.
func isHostName(name string) bool {
	if name == "" || len(name) > maxHostName || strings.Contains(name, "..") || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// Allows tells whether a request may have this Host, or this authority in its target. Ports are
// not compared: a tunnel (ssh -L) may use another port, and a rebound name is refused on any port.
// Names in the set do not allocate.
func (h *Hosts) Allows(host []byte) bool {
	if h == nil {
		return true
	}
	name, ok := trimPort(host)
	if !ok || len(name) > maxHostName+1 {
		return false
	}
	var buf [maxHostName + 1]byte
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
		if _, ok := h.hostNames[string(lower)]; ok {
			return bytes.IndexByte(lower, ':') >= 0 // brackets are for IPv6
		}
		ip, err := netip.ParseAddr(string(lower)) // in another notation
		if err != nil || ip.Zone() != "" || !ip.Is6() {
			return false
		}
		_, ok := h.hostNames[ip.String()]
		return ok
	}
	_, ok = h.hostNames[string(lower)]
	return ok && bytes.IndexByte(lower, ':') < 0 // an IPv6 address needs its brackets
}

// trimPort removes the port, which may be empty, from a Host: "localhost:2503" and "localhost:" give
// "localhost", "[::1]:80" gives "[::1]". ok is false for an empty name, an unclosed bracket and a port
// of more than five digits.
func trimPort(host []byte) (name []byte, ok bool) {
	end := len(host)
	for end > 0 && host[end-1] >= '0' && host[end-1] <= '9' {
		end--
	}
	switch {
	case end == 0 || host[end-1] != ':':
		name = host // without a port
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

// Fetch holds the headers by which a browser describes a request. Other programs do not send them,
// and web pages cannot set them. Each member is the value of one header; empty = the header is
// absent.
type Fetch struct {
	Host   []byte
	Origin []byte
	Site   []byte // Sec-Fetch-Site
	Mode   []byte // Sec-Fetch-Mode
	Dest   []byte // Sec-Fetch-Dest
	Safe   bool   // the method is GET, HEAD or OPTIONS
	// Bulk says that the answer is not a document: a browser saves it as a file, or reads it
	// without end.
	Bulk bool
}

// Origins is a set of web origins whose pages may use the API, in addition to the server's own
// origin.
type Origins struct{ origins map[string]struct{} }

// NewOrigins returns a set of origins. Each is written as browsers write it: scheme://host, with the
// port unless that is the scheme's default, such as "https://app.example" or "http://localhost:3000".
// Anything else is an error, because it would never match: a path, a final slash, the default port.
func NewOrigins(origins ...string) (*Origins, error) {
	o := &Origins{origins: make(map[string]struct{}, len(origins))}
	for _, origin := range origins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || origin != u.Scheme+"://"+u.Host {
			return nil, fmt.Errorf("%q is not an origin: write https://host or http://host:port", origin)
		}
		canonical := strings.ToLower(origin)
		if canonical != strings.TrimSuffix(canonical, defaultPort(u.Scheme)) {
			return nil, fmt.Errorf("%q is not how browsers write an origin: leave out the default port", origin)
		}
		o.origins[canonical] = struct{}{}
	}
	return o, nil
}

// Has tells whether the origin is in the set. A nil set is empty. Browsers write origins in lower case,
// so the comparison is of bytes.
func (o *Origins) Has(origin []byte) bool {
	if o == nil || len(origin) == 0 {
		return false
	}
	_, ok := o.origins[string(origin)]
	return ok
}

// ErrCrossSite is the cause of all errors of Check.
var ErrCrossSite = errors.New("cross-site request")

// Check refuses a request that a page of another origin causes. Such a page cannot read the answer, but
// the request would take effect. A navigation of the whole window by a link is allowed if the method is
// safe and the answer is a document. Pages must not be able to make the server send everything it has,
// or the browser save it. A nil *Origins allows only the server's own origin.
//
//	Origin            Sec-Fetch-Site                  verdict
//	absent            absent                          a program, or an old browser's GET: served
//	listed            any                             served
//	own               absent, none, same-origin       served
//	another           any                             refused
//	absent            none, same-origin               served: typed, or from an own page
//	own or absent     cross-site, same-site           refused, unless it opens a document in a window
//
// Both headers are needed. Origin is left out of most GET requests, and old browsers do not send
// Sec-Fetch-Site, nor does any browser to an http: address of another machine.
func (o *Origins) Check(f Fetch) error {
	if len(f.Origin) > 0 {
		if o.Has(f.Origin) {
			return nil
		}
		if !sameOrigin(f.Origin, f.Host) {
			return fmt.Errorf("%w: origin %q is not this server's (%q); --cors-origin allows more origins",
				ErrCrossSite, truncateInput(f.Origin), truncateInput(f.Host))
		}
	}
	switch string(f.Site) {
	case "", "none", "same-origin":
		return nil
	}
	if f.Safe && !f.Bulk && string(f.Mode) == "navigate" && (len(f.Dest) == 0 || string(f.Dest) == "document") {
		return nil
	}
	return fmt.Errorf("%w: Sec-Fetch-Site is %q", ErrCrossSite, truncateInput(f.Site))
}

// SameOrigin tells whether a browser sent the request from a page of this server, or did not name
// the page.
func (f Fetch) SameOrigin() bool {
	if len(f.Origin) > 0 && !sameOrigin(f.Origin, f.Host) {
		return false
	}
	switch string(f.Site) {
	case "", "none", "same-origin":
		return true
	}
	return false
}

// sameOrigin compares an Origin with the Host of the same request. The scheme is not compared: a proxy
// may have ended TLS. A default port counts as absent on either side, because browsers leave it out.
// "null" (a sandboxed frame, a file) never equals a host.
func sameOrigin(origin, host []byte) bool {
	scheme, authority, ok := bytes.Cut(origin, []byte("://"))
	if !ok {
		return false // also "null"
	}
	port := defaultPort(string(scheme))
	if port == "" {
		return false
	}
	return len(authority) > 0 &&
		bytes.EqualFold(bytes.TrimSuffix(authority, []byte(port)), bytes.TrimSuffix(host, []byte(port)))
}

// defaultPort returns the default port of a web scheme, with its colon; "" for any other scheme.
func defaultPort(scheme string) string {
	switch scheme {
	case "http":
		return ":80"
	case "https":
		return ":443"
	}
	return ""
}

// truncateInput truncates what a client sent, for an error text.
func truncateInput(b []byte) []byte {
	const most = 100
	return b[:min(len(b), most)]
}
