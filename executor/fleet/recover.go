package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor/workerpb"
)

// recoverPanics returns the options of a server that answers a call that panics with Internal, and logs the stack.
// gRPC itself would let the process end. Attach is left out: it changes the agent, and goes on from a broken
// invariant as little as the rest of the process does. The other calls only read, or add a section to a file.
func recoverPanics(log *slog.Logger) []grpc.ServerOption {
	rescue := func(method string, err *error) {
		if p := recover(); p != nil {
			log.Error("a call of another node has panicked", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			*err = status.Errorf(codes.Internal, "%s panicked: %v", method, p)
		}
	}
	unary := func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
		defer rescue(info.FullMethod, &err)
		return handle(ctx, request)
	}
	stream := func(server any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
		if info.FullMethod != workerpb.Worker_Attach_FullMethodName {
			defer rescue(info.FullMethod, &err)
		}
		return handle(server, s)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}
