package http

import (
	"context"
	"strconv"

	"github.com/valyala/fasthttp"
)

// upgradeCluster is POST /v1/cluster/upgrade. Every node can answer it.
func (s *Server) upgradeCluster(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	if err := eachParameter(ctx, func(name, _ string) error { return unknownParameter(name) }); err != nil {
		return err
	}
	call := contextOf(ctx)
	from, level, err := s.cfg.Cluster.UpgradeLevel(call)
	if err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	dst := strconv.AppendInt([]byte(`{"from":`), int64(from), 10)
	dst = strconv.AppendInt(append(dst, `,"level":`...), int64(level), 10)
	answerJSON(ctx, append(dst, '}'))
	return nil
}
