// Package access decides who may use a server: which host names a request may have, which web
// pages may send one, what a token allows, and how changes are recorded. It does not depend on
// fasthttp or on runs: package http passes in what a request says, and turns the verdict into
// an answer.
//
//	origins.go   host names (DNS rebinding), and requests that a web page of another origin
//	             causes (CSRF)
//	tokens.go    scopes and callers; the token file: names, scopes, hashes of secrets
//	sessions.go  browsers that have logged in with a token; limits on logins by address
//	tls.go       a TLS certificate that is reloaded when its files change
//	audit.go     the record of changes and refusals
//
// Rules that hold throughout:
//
//  1. Secrets are kept as SHA-256 hashes, compared in constant time, and never logged.
//  2. A reload is all or nothing: after a mistake in a file, the former content stays valid.
//  3. Requests that are not allowed by name are refused.
package access
