package main

import (
	"net"

	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/http/access"
)

// doorOf is what the server asks of those who want in by a listener.
func doorOf(c Config, l net.Listener) (http.Access, error) {
	var a http.Access
	var names []string
	tcp, ok := l.Addr().(*net.TCPAddr)
	switch {
	case !ok: // in memory: no web page reaches it
	case tcp.IP.IsLoopback():
		names = append(access.LoopbackHosts(), tcp.IP.String())
		names = append(names, c.AllowHosts...)
	default:
		names = c.AllowHosts
	}
	var err error
	if len(names) > 0 {
		if a.Hosts, err = access.NewHosts(names...); err != nil {
			return a, err
		}
	}
	if len(c.CORSOrigins) > 0 {
		a.Origins, err = access.NewOrigins(c.CORSOrigins...)
	}
	return a, err
}
