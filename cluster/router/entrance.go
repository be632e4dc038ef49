package router

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/clustertls"
)

// NewEntrance returns the entrance of this node for requests that others forward. The http.Server that gets
// it closes it.
func NewEntrance(d cluster.Directory) (*http.Entrance, error) {
	l, err := d.Listen(cluster.HTTPProtocol)
	if err != nil {
		return nil, err
	}
	if l.Addr().Network() == "memory" { // of a test: no stranger reaches it
		return &http.Entrance{Listener: l, CheckNode: func(net.Conn) error { return nil }}, nil
	}
	return &http.Entrance{Listener: l, CheckNode: checkNode}, nil
}

// checkNode returns an error for a connection that no node can have made. The member's port has checked
// that before it hands a connection out; a mistake there would let anybody speak for any caller, so it is
// checked twice.
func checkNode(c net.Conn) error {
	encrypted, ok := c.(*tls.Conn)
	if !ok {
		return errors.New("it is not encrypted")
	}
	state := encrypted.ConnectionState()
	switch {
	case len(state.VerifiedChains) == 0:
		return errors.New("its certificate is not verified")
	case state.NegotiatedProtocol != cluster.HTTPProtocol:
		return fmt.Errorf("its protocol is %q", state.NegotiatedProtocol)
	}
	peer, err := clustertls.PeerOf(state)
	if err == nil && peer.Role != clustertls.Node {
		err = fmt.Errorf("it is one of %v", peer)
	}
	return err
}
