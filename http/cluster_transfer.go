package http

import (
	"context"
	"math"
	"strconv"

	"github.com/valyala/fasthttp"
)

// LeaderTransfer is a change of the leader of a partition.
type LeaderTransfer struct {
	Partition uint64
	From, To  string // IDs of nodes; To is "" when no node was found
	Problem   string // why the leader is the same; "" = it is not, and the next one serves
}

// transferLeaders is POST /v1/cluster/transfer. Every node can answer it. It answers when the next leaders serve.
//
//	partition=P&to=NODE   NODE shall lead the partition P
//	from=NODE             NODE shall lead none
func (s *Server) transferLeaders(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Cluster == nil {
		return &refusal{fasthttp.StatusNotFound, "this server is not a node of a cluster"}
	}
	partition, to, from := uint64(math.MaxUint64), "", ""
	err := eachParameter(ctx, func(name, value string) (err error) {
		switch name {
		case "partition":
			partition, err = parsePartition(value)
		case "to":
			to = value
		case "from":
			from = value
		default:
			err = unknownParameter(name)
		}
		return err
	})
	if err != nil {
		return err
	}
	hasPartition := partition != math.MaxUint64
	if (from == "") == (to == "") || hasPartition != (to != "") {
		return invalid("give either partition and to, or from")
	}
	call := contextOf(ctx)
	var all []LeaderTransfer
	if from != "" {
		all, err = s.cfg.Cluster.TransferAll(call, from)
	} else {
		var one LeaderTransfer
		one, err = s.cfg.Cluster.Transfer(call, partition, to)
		all = append(all, one)
	}
	if err != nil {
		return err
	}
	if err := context.Cause(call); err != nil {
		return err
	}
	dst := append(make([]byte, 0, 256), `{"transfers":[`...)
	for i, t := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendUint(append(dst, `{"partition":`...), t.Partition, 10)
		dst = appendString(append(dst, `,"from":`...), t.From)
		dst = appendString(append(dst, `,"to":`...), t.To)
		dst = append(appendString(append(dst, `,"problem":`...), t.Problem), '}')
	}
	answerJSON(ctx, append(dst, "]}"...))
	return nil
}

// parsePartition returns the number of a partition.
func parsePartition(value string) (uint64, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return 0, invalid("partition " + quoteInput(value) + ": must be a number from 0 upwards")
	}
	return n, nil
}
