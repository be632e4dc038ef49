package access

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Fetch is what a browser tells of a request that it sends. Programs other than
// browsers send none of it, and web pages cannot set it. Each member is the value
// of one header, empty when that header is absent.
type Fetch struct {
	Host   []byte
	Origin []byte
	Site   []byte // Sec-Fetch-Site
	Mode   []byte // Sec-Fetch-Mode
	Dest   []byte // Sec-Fetch-Dest
	Safe   bool   // the method is GET, HEAD or OPTIONS
	// Bulk says that the answer is no document to look at: a browser saves it as a file,
	// or reads it without end.
	Bulk bool
}

// Origins is a set of web origins whose pages may use the API, apart from the
// server's own origin.
type Origins struct{ origins map[string]struct{} }

// NewOrigins returns the set. Each origin is written as browsers write it:
// scheme://host, with the port unless it is the scheme's default.
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

// Has tells whether the origin is in the set. A nil set is empty.
func (o *Origins) Has(origin []byte) bool {
	if o == nil || len(origin) == 0 {
		return false
	}
	_, ok := o.origins[string(origin)]
	return ok
}

// ErrCrossSite is the cause of every refusal by Check.
var ErrCrossSite = errors.New("cross-site request")

// Check refuses a request that a page of another origin causes. Such a page cannot
// read the answer, but the request would have its effect. A navigation of the
// whole window by a link is allowed, where the method is safe and the answer a document: any
// page can navigate, and must not make the server send all that it has, nor the browser
// save it.
func (o *Origins) Check(f Fetch) error {
	if len(f.Origin) > 0 {
		if o.Has(f.Origin) {
			return nil
		}
		if !sameOrigin(f.Origin, f.Host) {
			return fmt.Errorf("%w: origin %q is not this server's (%q); --cors-origin allows more origins",
				ErrCrossSite, clip(f.Origin), clip(f.Host))
		}
	}
	switch string(f.Site) {
	case "", "none", "same-origin":
		return nil
	}
	if f.Safe && !f.Bulk && string(f.Mode) == "navigate" && (len(f.Dest) == 0 || string(f.Dest) == "document") {
		return nil
	}
	return fmt.Errorf("%w: Sec-Fetch-Site is %q", ErrCrossSite, clip(f.Site))
}

// SameOrigin tells whether a browser sent the request from a page of this server,
// or did not say where it came from.
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

// sameOrigin compares an Origin with the Host of the same request. The scheme is not
// compared: a proxy may have ended TLS.
func sameOrigin(origin, host []byte) bool {
	scheme, authority, ok := bytes.Cut(origin, []byte("://"))
	if !ok {
		return false // "null", too
	}
	port := defaultPort(string(scheme))
	if port == "" {
		return false
	}
	return len(authority) > 0 &&
		bytes.EqualFold(bytes.TrimSuffix(authority, []byte(port)), bytes.TrimSuffix(host, []byte(port)))
}

// defaultPort is the port of a web scheme as it stands behind a host; "" for any
// other scheme.
func defaultPort(scheme string) string {
	switch scheme {
	case "http":
		return ":80"
	case "https":
		return ":443"
	}
	return ""
}

// clip bounds what a client sent for a sentence.
func clip(b []byte) []byte {
	const most = 100
	return b[:min(len(b), most)]
}
