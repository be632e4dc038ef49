package http

import (
	"context"
	"strconv"

	"github.com/valyala/fasthttp"
)

// ReplicaVerification is what one replica of a partition says of its rows.
type ReplicaVerification struct {
	Node    string // ID
	Digest  string // hexadecimal; "" = none
	Rows    uint64
	Differs bool   // most replicas have other rows
	Problem string // why there is no digest to compare; "" = there is one
}

// PartitionVerification compares the replicas of a partition.
type PartitionVerification struct {
	Index    uint64 // the log entry as of which the replicas are compared
	Equal    bool   // all replicas were compared, and have the same rows
	Replicas []ReplicaVerification
	Problem  string // why nothing was compared; "" = something was
}

// verifyCluster is POST /v1/cluster/verify. Every node can answer it. It takes as long as the replicas need to
// read all their rows, one partition after the other.
func (s *Server) verifyCluster(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	call := contextOf(ctx)
	partitions, err := s.cfg.Cluster.Verify(call)
	if err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	equal := len(partitions) > 0
	for i := range partitions {
		equal = equal && partitions[i].Equal
	}
	dst := strconv.AppendBool(append(make([]byte, 0, 1024), `{"equal":`...), equal)
	dst = append(dst, `,"partitions":[`...)
	for i := range partitions {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendVerification(dst, i, &partitions[i])
	}
	answerJSON(ctx, append(dst, "]}"...))
	return nil
}

func appendVerification(dst []byte, partition int, v *PartitionVerification) []byte {
	dst = strconv.AppendInt(append(dst, `{"partition":`...), int64(partition), 10)
	dst = strconv.AppendUint(append(dst, `,"index":`...), v.Index, 10)
	dst = strconv.AppendBool(append(dst, `,"equal":`...), v.Equal)
	dst = append(dst, `,"replicas":[`...)
	for i, r := range v.Replicas {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(append(dst, `{"node":`...), r.Node)
		dst = appendString(append(dst, `,"digest":`...), r.Digest)
		dst = strconv.AppendUint(append(dst, `,"rows":`...), r.Rows, 10)
		dst = strconv.AppendBool(append(dst, `,"differs":`...), r.Differs)
		dst = appendString(append(dst, `,"problem":`...), r.Problem)
		dst = append(dst, '}')
	}
	dst = appendString(append(dst, `],"problem":`...), v.Problem)
	return append(dst, '}')
}
