package http

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// The entrance for other nodes of the cluster. What comes in here was checked by the node that it arrived
// at first: host, origin, token and scope. So the middlewares differ in three places:
//
//	nodeAdmission     at shutdown 421 instead of 503: the entry node looks for another leader
//	forwardedCaller   in place of protection and authentication: the connection is a node's, and the
//	                  header says who the caller is
//	forwarding        refuses what another node leads, instead of waiting for a leader
//
// It has only the routes that are forwarded. The headers are read at this entrance alone. On any other
// one they are a client's, and are ignored.

// Headers of forwarded requests and their answers.
const (
	nodeHeaderPrefix = "X-Caravan-"
	callerHeader     = nodeHeaderPrefix + "Caller"     // a forwardedPrincipal, as JSON
	hopsHeader       = nodeHeaderPrefix + "Hops"       // how often the request was forwarded, from 1
	partitionHeader  = nodeHeaderPrefix + "Partition"  // that the request, or this part of it, is about
	leaderHeader     = nodeHeaderPrefix + "Leader"     // of a 421: the leader that the node knows, or empty
	pageBytesHeader  = nodeHeaderPrefix + "Page-Bytes" // of a part of a list: the length from which it ends
)

// maxForwardedHeader bounds the request line and headers of a forwarded request, in bytes: those of the
// client, and what the entry node adds.
const maxForwardedHeader = 2 * maxHeader

// nodeMiddlewares are the middlewares of the entrance for other nodes. See middlewares.
func nodeMiddlewares() []middleware {
	return []middleware{accounting, auditing, rendering, nodeAdmission, wellFormedness, forwardedCaller, limits, forwarding, continuation}
}

// forwardedPrincipal is the caller of a forwarded request. The entry node vouches for it.
type forwardedPrincipal struct {
	Node        string `json:"node"` // the entry node
	Scopes      string `json:"scopes"`
	Token       string `json:"token,omitempty"`
	Session     bool   `json:"session,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Address     string `json:"address"`
	UID         int    `json:"uid"`
}

// callerOf returns the caller of a request, for another node. node is this one; a request that was
// forwarded to it keeps its entry node.
func callerOf(ctx *fasthttp.RequestCtx, node string) *forwardedPrincipal {
	return callerOn(connOf(ctx), node)
}

// callerOn is callerOf for the present request of a connection, or nil.
func callerOn(c *conn, node string) *forwardedPrincipal {
	p := &forwardedPrincipal{Node: node, Scopes: access.All.String(), UID: -1}
	if c == nil {
		return p
	}
	r := c.request.Load()
	if r.forwarded.node != "" {
		p.Node = r.forwarded.node
	}
	if r.identified {
		p.Scopes = r.scopes.String()
	}
	who := &r.principal
	p.Token, p.Session, p.Certificate, p.Address, p.UID = who.Token, who.Session, who.Certificate, who.Address, who.UID
	return p
}

// encode returns the value of callerHeader. JSON escapes what may not stand in a header.
func (p *forwardedPrincipal) encode() (string, error) {
	text, err := json.Marshal(p)
	return strings.ReplaceAll(string(text), "\x7f", `\u007f`), err
}

// decodeCaller is the reverse of encode.
func decodeCaller(header []byte) (entryNode string, who access.Caller, err error) {
	var p forwardedPrincipal
	if err := json.Unmarshal(header, &p); err != nil {
		return "", who, err
	}
	if p.Node == "" {
		return "", who, errors.New("the entry node is missing")
	}
	if p.Scopes != "" {
		if who.Scopes, err = access.ParseScopes(p.Scopes); err != nil {
			return "", who, err
		}
	}
	who.Principal = messages.Principal{Token: p.Token, Session: p.Session, Certificate: p.Certificate, Address: p.Address, UID: p.UID}
	return p.Node, who, nil
}

// nodeAdmission is admission for nodes. Their number is bounded, and so are the requests that each has
// admitted.
func nodeAdmission(s *Server, _ *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		c := connOf(ctx)
		if c != nil && !c.occupy() {
			ctx.SetConnectionClose()
			return &refusal{fasthttp.StatusServiceUnavailable, tooManyConns}
		}
		if s.draining.Load() {
			ctx.SetConnectionClose()
			ctx.Response.Header.Set(leaderHeader, "")
			return &refusal{fasthttp.StatusMisdirectedRequest, "this node is shutting down"}
		}
		return next(ctx)
	}
}

// forwardedCaller takes the caller from the header of the entry node, and refuses a connection that is not
// one of a node. The scope is checked here as well: a mistake of the entry node's routes must not grant a
// right.
func forwardedCaller(s *Server, rt *route, next handler) handler {
	return func(ctx *fasthttp.RequestCtx) error {
		c := connOf(ctx)
		if err := checkNode(c); err != nil {
			ctx.SetConnectionClose()
			return &refusal{fasthttp.StatusForbidden, "this port is for nodes of the cluster: " + err.Error()}
		}
		h := &ctx.Request.Header
		entryNode, who, err := decodeCaller(h.Peek(callerHeader))
		if err != nil {
			return &refusal{fasthttp.StatusBadRequest, "invalid " + callerHeader + ": " + err.Error()}
		}
		hops, err := strconv.Atoi(string(h.Peek(hopsHeader)))
		if err != nil || hops < 1 || hops > maxHops {
			return &refusal{fasthttp.StatusBadRequest, "invalid " + hopsHeader + " " + quoteInput(h.Peek(hopsHeader)) +
				": must be a number from 1 to " + strconv.Itoa(maxHops)}
		}
		partition, err := strconv.ParseUint(string(h.Peek(partitionHeader)), 10, 64)
		if err != nil || partition >= s.cfg.Cluster.Partitions() {
			return &refusal{fasthttp.StatusBadRequest, "invalid " + partitionHeader + " " + quoteInput(h.Peek(partitionHeader)) +
				": must be a number below " + strconv.FormatUint(s.cfg.Cluster.Partitions(), 10)}
		}
		setCaller(ctx, &who)
		c.request.Load().forwarded = forwardedFrom{node: entryNode, hops: hops, partition: partition, client: clientKeyOfPrincipal(&who.Principal)}
		if err := checkScope(&who, rt.scope); err != nil {
			return err
		}
		return next(ctx)
	}
}

// checkNode returns why a connection is not one of a node. The answer is kept: a certificate does not
// change.
func checkNode(c *conn) error {
	switch {
	case c == nil || c.entrance.CheckNode == nil:
		return errors.New("the connection has no entrance")
	case !c.isNodeChecked:
		c.nodeErr, c.isNodeChecked = c.entrance.CheckNode(c.Conn), true
	}
	return c.nodeErr
}

// forwardedPartition returns the partition that the entry node has named.
func forwardedPartition(ctx *fasthttp.RequestCtx) uint64 {
	return connOf(ctx).request.Load().forwarded.partition
}

// hopsOf returns how often a request was forwarded to this node.
func hopsOf(ctx *fasthttp.RequestCtx) int {
	if c := connOf(ctx); c != nil {
		return c.request.Load().forwarded.hops
	}
	return 0
}
