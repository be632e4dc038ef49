package workerpb

import "google.golang.org/grpc"

// MaxFrame bounds a message, in bytes: what a generator printed goes in one.
const MaxFrame = 128 << 20

// With a window of fixed size gRPC sends no pings to measure the connection.
const (
	window     = 1 << 20
	bufferSize = 64 << 10
)

// NewServer returns a gRPC server that hands its streams to w.
func NewServer(w WorkerServer, options ...grpc.ServerOption) *grpc.Server {
	s := grpc.NewServer(append([]grpc.ServerOption{grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(MaxFrame), grpc.MaxSendMsgSize(MaxFrame),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize)}, options...)...)
	RegisterWorkerServer(s, w)
	return s
}

// DialOptions are the options of a server's connection besides its credentials and its dialer.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(MaxFrame), grpc.MaxCallSendMsgSize(MaxFrame)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(bufferSize), grpc.WithWriteBufferSize(bufferSize),
	}
}
