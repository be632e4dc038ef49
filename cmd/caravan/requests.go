package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/http"
)

// requestServer is the HTTP server of a localServer or a node, and the failure that ends the whole. The
// caller of newRequestServer sets http before it calls serve.
type requestServer struct {
	http *http.Server
	log  *slog.Logger

	serveDone chan struct{} // closed when serve has returned
	failOnce  sync.Once
	failed    chan struct{} // closed by fail; stays open if the server just closes
	err       error         // read it after failed
}

func newRequestServer(log *slog.Logger) *requestServer {
	return &requestServer{log: log, serveDone: make(chan struct{}), failed: make(chan struct{})}
}

// closeOnceListener is a listener that several owners may close: the HTTP server, and
// startLocalServer after a failed start. Only the first call returns the error.
type closeOnceListener struct {
	net.Listener
	close sync.Once
}

func (o *closeOnceListener) Close() (err error) {
	o.close.Do(func() { err = o.Listener.Close() })
	return err
}

// serve answers requests until the listeners close or one of them fails. It runs on a goroutine
// of its own for the life of the server. After a failure the other listeners go on until Shutdown,
// so that clients there are still answered while the server stops.
func (r *requestServer) serve(entrances []net.Listener) {
	defer close(r.serveDone)
	ended := make(chan error, len(entrances))
	for _, l := range entrances {
		go func() { ended <- r.http.Serve(l) }()
	}
	for range entrances {
		if err := <-ended; err != nil {
			r.fail(fmt.Errorf("listener: %w", err))
			return
		}
	}
}

// stopServing ends the HTTP server of a start that has failed. All requests were answered with 503,
// or are slow to arrive, so it closes their connections at once.
func (r *requestServer) stopServing() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // do not wait for requests in flight
	if err := r.http.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// fail ends the server with its first failure: of a listener, the engine or the store.
func (r *requestServer) fail(err error) {
	r.failOnce.Do(func() {
		r.err = err
		close(r.failed)
	})
}

// failing is a part of a server that may fail: an engine, whose failures include those of its store.
type failing interface {
	Failed() <-chan struct{}
	Err() error
}

// watchEngine makes the failure of an engine that of the server. Its goroutine ends with the HTTP
// server.
func (r *requestServer) watchEngine(engine failing) {
	select {
	case <-engine.Failed():
		r.fail(engine.Err())
	case <-r.serveDone:
	}
}

func (r *requestServer) Failed() <-chan struct{} { return r.failed }
func (r *requestServer) Err() error              { return r.err }

// drainTimeout is how long requests in flight may take when the server closes. The rest of its time,
// of stopTimeout, is for the attempts and the last commits.
const drainTimeout = 3 * time.Second

// drain stops requests, and waits for those in flight.
func (r *requestServer) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	err := r.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		// A slow reader causes this. It breaks no promise: what was asked for may have taken
		// effect, as with any connection that breaks.
		r.log.Warn("requests in flight were cut off", "after", drainTimeout.String())
		err = nil
	}
	return wrapClose("requests", err)
}
