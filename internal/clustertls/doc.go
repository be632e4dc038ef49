// Package clustertls makes and verifies the certificates by which the members of a cluster know each
// other: the nodes, and the workers on other machines.
//
// A cluster has an authority of its own, and each member a certificate that the authority has signed.
// The certificate states a role and a name as two DNS names (see Identity), as Nomad and Consul do:
//
//	n1.node.caravan.internal     node.caravan.internal
//
// `.internal` is reserved for private use, so no public authority signs such a name. Addresses are not
// in the certificate: a member may move to another one.
//
// Rules that hold for each connection:
//
//  1. TLS 1.3, and both sides show a certificate. Tickets are off, so each handshake verifies it again.
//  2. The side that accepts requires the role that belongs to the protocol of the connection (ALPN).
//  3. The side that connects requires the role and the name that it looks for.
//  4. A certificate without an identity is refused, even if the same authority signed it: that of a client
//     of a public listener, for one.
//  5. New files take effect for new connections, without a restart. After a mistake in a file the old
//     ones remain in use.
//
// # Keys and times
//
// Keys are ECDSA on P-256, which every library and every mode of Go speaks, FIPS 140 included; Ed25519
// would save little, since a connection lasts as long as its processes. Files of other authorities may
// have other keys.
//
// An authority lasts ten years by default: to replace it, each node must be visited. A certificate lasts
// one year. Certificates cannot be revoked, so the end of one bounds how long a stolen key is of use, and
// `caravan tls node` renews it while the node runs. It begins a day before it is made: a node
// with a slow clock accepts it, too.
//
// # Files
//
//	the authority's folder   ca.pem, ca-key.pem        kept apart from the nodes
//	the folder of a node     ca.pem, node.pem, node-key.pem
//	the folder of a worker   ca.pem, worker.pem, worker-key.pem
//
// Files are PEM, keys PKCS #8. Key files have mode 0600, and are refused when others may read them.
// ca.pem may have several authorities: a member trusts all of them. In the authority's folder the first
// one is that of the key.
//
// identity.go has roles and names, authority.go signs, files.go writes, credentials.go verifies.
package clustertls
