package messages

import "context"

// Principal is the caller on whose behalf the engine is asked, as far as the server knows it.
// The zero value is the server itself.
type Principal struct {
	Token       string // name of the token; "" = without a token
	Session     bool   // a browser's session stands for the token
	Certificate string // subject of the verified client certificate; "" = none
	Address     string // HOST:PORT of the client, or "unix"
	UID         int    // user at the other end of a unix socket; -1 = unknown
}

// PrincipalKey is the key of a context's *Principal. The pointer is valid until the call that
// has the context returns.
type PrincipalKey struct{}

// PrincipalOf returns the principal of a call; false when the server itself makes the call.
func PrincipalOf(ctx context.Context) (Principal, bool) {
	if p, ok := ctx.Value(PrincipalKey{}).(*Principal); ok {
		return *p, true
	}
	return Principal{}, false
}
