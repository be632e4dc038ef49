package http

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"

	"github.com/caravan-dag/caravan/http/access"
)

// Entrance is a listener and what is asked of those who come in by it. The zero
// value of every other member asks for nothing.
type Entrance struct {
	net.Listener
	// Hosts are the names that a request may ask for; nil = any.
	Hosts *access.Hosts
	// TLS is spoken when it is given.
	TLS *tls.Config
	// Local callers are known by their user, which must be this process's or root:
	// the listener is a unix socket. They need no token.
	Local bool
}

// accept makes a connection one of this entrance.
func (e *Entrance) accept(c *conn) {
	c.entrance, c.uid, c.address = e, -1, c.RemoteAddr().String()
	if e.Local {
		c.uid, c.address = int(c.client.uid)-1, "unix"
	}
	c.waitingSince.Store(notWaiting)
	c.request.Store(newRequestContext(c))
	if e.TLS != nil {
		c.raw = c.Conn
		c.Conn = tls.Server(c.raw, e.TLS)
	}
}

// cut closes a connection at once: the end of TLS is not announced, which might wait
// for a client that does not read.
func (c *conn) cut() {
	c.request.Load().cancel(errConnClosed)
	if c.raw != nil {
		_ = c.raw.Close()
		return
	}
	_ = c.Conn.Close()
}

// stranger tells whether a connection by a unix socket is of a user who has no
// business there.
func (c *conn) stranger() bool {
	return c.entrance.Local && c.uid != 0 && c.uid != os.Geteuid()
}

// certificate is the client's certificate, which was verified; nil = none.
func (c *conn) certificate() *x509.Certificate {
	t, ok := c.Conn.(*tls.Conn)
	if !ok || c.entrance.TLS == nil {
		return nil
	}
	if verified := t.ConnectionState().VerifiedChains; len(verified) > 0 && len(verified[0]) > 0 {
		return verified[0][0]
	}
	return nil
}
