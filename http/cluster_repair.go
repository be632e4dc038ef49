package http

import (
	"context"
	"math"

	"github.com/valyala/fasthttp"
)

// ReplicaRepair is a replica whose rows were replaced by those of another one.
type ReplicaRepair struct {
	Partition    uint64
	Node, Source string // IDs of nodes
	Verification PartitionVerification
}

// repairReplica is POST /v1/cluster/repair?partition=P&node=NODE. Every node can answer it. It takes as long as the
// replicas need to read their rows twice, and one of them to send and store them.
func (s *Server) repairReplica(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	partition, node := uint64(math.MaxUint64), ""
	err := eachParameter(ctx, func(name, value string) (err error) {
		switch name {
		case "partition":
			partition, err = parsePartition(value)
		case "node":
			node = value
		default:
			err = unknownParameter(name)
		}
		return err
	})
	if err != nil {
		return err
	}
	if partition == math.MaxUint64 || node == "" {
		return invalid("give partition and node")
	}
	call := contextOf(ctx)
	r, err := s.cfg.Cluster.Repair(call, partition, node)
	if err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	dst := appendString(append(make([]byte, 0, 512), `{"node":`...), r.Node)
	dst = appendString(append(dst, `,"source":`...), r.Source)
	dst = appendVerification(append(dst, `,"verification":`...), int(r.Partition), &r.Verification)
	answerJSON(ctx, append(dst, '}'))
	return nil
}
