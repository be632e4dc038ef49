// Package access decides who may talk to a server: which names a request may ask
// for, which web pages may send one, which token allows what, and how changes are
// recorded. It knows nothing of fasthttp or of runs: package http passes in what a
// request says and turns the verdict into an answer.
//
//	hosts.go     names that a request's Host may have (DNS rebinding)
//	origin.go    requests that a web page of another origin causes (CSRF)
package access
