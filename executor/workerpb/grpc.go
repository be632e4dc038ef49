package workerpb

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// MaxFrame bounds a message, in bytes: what a generator printed goes in one.
const MaxFrame = 128 << 20

// With a window of fixed size gRPC sends no pings to measure the connection.
const (
	window     = 1 << 20
	bufferSize = 64 << 10
)

// codec is gRPC's codec of protobuf messages, with the generated methods in place of reflection.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// vtMessage is a message of this package.
type vtMessage interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
	UnmarshalVT([]byte) error
}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(vtMessage)
	if !ok {
		return nil, fmt.Errorf("worker protocol: cannot encode a %T", v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		buffer := make([]byte, size)
		_, err := m.MarshalToSizedBufferVT(buffer)
		return mem.BufferSlice{mem.SliceBuffer(buffer)}, err
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(size)
	if _, err := m.MarshalToSizedBufferVT((*buffer)[:size]); err != nil {
		pool.Put(buffer)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
}

// Unmarshal implements encoding.CodecV2. The message does not share memory with the buffers.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(vtMessage)
	if !ok {
		return fmt.Errorf("worker protocol: cannot decode into a %T", v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return m.UnmarshalVT(buffer.ReadOnlyData())
}

// Name implements encoding.CodecV2: the bytes are those of every other implementation.
func (codec) Name() string { return "proto" }

// NewServer returns a gRPC server that hands its streams to w.
func NewServer(w WorkerServer) *grpc.Server {
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(MaxFrame), grpc.MaxSendMsgSize(MaxFrame),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize))
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
