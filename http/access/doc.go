// Package access decides who may talk to a server: which names a request may ask
// for, which web pages may send one, which token allows what, and how changes are
// recorded. It knows nothing of fasthttp or of runs: package http passes in what a
// request says and turns the verdict into an answer.
//
//	hosts.go        names that a request's Host may have (DNS rebinding)
//	origin.go       requests that a web page of another origin causes (CSRF)
//	scope.go        what a caller may do; who a caller is
//	tokens.go       the token file: names, scopes, hashes of secrets
//	privatefile.go  files that only their owner may read
//	sessions.go     browsers that have logged in with a token
//	rate.go         bounds on attempts by address
//	certificate.go  a TLS certificate that is reloaded when its files change
//	audit.go        the record of changes and refusals
//
// Rules that hold throughout:
//
//  1. Secrets are kept as SHA-256 hashes, compared in constant time, and never
//     logged.
//  2. A reload is all or nothing: a file with a mistake leaves in force what was
//     read before.
//  3. What is not allowed by name is refused.
package access
