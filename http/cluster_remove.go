package http

import (
	"context"

	"github.com/valyala/fasthttp"
)

// removeNode is POST /v1/cluster/remove?node=NODE. Every other node can answer it.
func (s *Server) removeNode(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	node := ""
	err := eachParameter(ctx, func(name, value string) error {
		if name != "node" {
			return unknownParameter(name)
		}
		node = value
		return nil
	})
	if err != nil {
		return err
	}
	if node == "" {
		return invalid("give node")
	}
	call := contextOf(ctx)
	removed, err := s.cfg.Cluster.Remove(call, node)
	if err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	answerJSON(ctx, append(appendString([]byte(`{"removed":`), removed), '}'))
	return nil
}
