package workerpb

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
)

// Names of the streams; they carry the protocol's version.
const (
	service      = "caravan.worker.v1.Worker"
	AttachMethod = "/" + service + "/Attach"
	LogMethod    = "/" + service + "/Log"
)

// MaxFrame bounds a message: what a generator printed goes in one item.
const MaxFrame = 128 << 20

// Codec passes a *[]byte as it is. What was sent may not be changed afterwards.
type Codec struct{}

// Marshal implements encoding.Codec.
func (Codec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("worker protocol: a frame is no %T", v)
	}
	return *b, nil
}

// Unmarshal implements encoding.Codec.
func (Codec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("worker protocol: a frame is no %T", v)
	}
	*b = data
	return nil
}

// Name implements encoding.Codec.
func (Codec) Name() string { return "caravan-flat" }

// Handler is a worker's side.
type Handler interface {
	Attach(grpc.ServerStream) error
	Log(grpc.ServerStream) error
}

// With a window of fixed size gRPC sends no pings
// to measure the connection.
const (
	window     = 1 << 20
	bufferSize = 64 << 10
)

// NewServer returns a server that hands its streams to h.
func NewServer(h Handler) *grpc.Server {
	s := grpc.NewServer(grpc.ForceServerCodec(Codec{}), grpc.MaxRecvMsgSize(MaxFrame), grpc.MaxSendMsgSize(MaxFrame),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize))
	both := func(name string, serve func(any, grpc.ServerStream) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, Handler: serve, ServerStreams: true, ClientStreams: true}
	}
	s.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*Handler)(nil), Streams: []grpc.StreamDesc{
		both("Attach", func(h any, s grpc.ServerStream) error { return h.(Handler).Attach(s) }),
		both("Log", func(h any, s grpc.ServerStream) error { return h.(Handler).Log(s) }),
	}}, h)
	return s
}

// DialOptions are a server's, beside its credentials and its dialer.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.ForceCodec(Codec{}), grpc.MaxCallRecvMsgSize(MaxFrame), grpc.MaxCallSendMsgSize(MaxFrame)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(bufferSize), grpc.WithWriteBufferSize(bufferSize),
	}
}

// Open opens a stream of the given method.
func Open(ctx context.Context, c *grpc.ClientConn, method string) (grpc.ClientStream, error) {
	return c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
}
