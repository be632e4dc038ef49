package http

import (
	"context"

	"github.com/valyala/fasthttp"
)

// declareWorkerDead is POST /v1/cluster/worker/dead?worker=ID. Every node can answer it.
func (s *Server) declareWorkerDead(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	worker := ""
	err := eachParameter(ctx, func(name, value string) error {
		if name != "worker" {
			return unknownParameter(name)
		}
		worker = value
		return nil
	})
	if err != nil {
		return err
	}
	if worker == "" {
		return invalid("give worker")
	}
	call := contextOf(ctx)
	if err := s.cfg.Cluster.DeclareWorkerDead(call, worker); err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	answerJSON(ctx, append(appendString([]byte(`{"dead":`), worker), '}'))
	return nil
}
