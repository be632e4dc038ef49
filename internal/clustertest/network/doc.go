// Package network is a network between the nodes of a cluster and its clients, on one machine, that
// a test disturbs: delay, loss, cuts in one or both directions.
//
// A network connects places: one for each node, and one for the clients (ClientPlace). Open picks
// one of two forms, and Describe says which and why:
//
//	namespaces  Each place is a network namespace with a TUN device. This process is the switch: it
//	            reads the packets of each device and writes them to others. So every protocol and
//	            every process of a place is disturbed, and a cut is silent, as a real one is. It
//	            needs root and /dev/net/tun, and no other module of the kernel.
//	proxies     All places share the loopback device, and each port of a node is a proxy in this
//	            process. It finds out who connects from /proc. A cut resets the connections, and a
//	            cut in one direction holds back the bytes of that direction. Only Cut, Delay and
//	            Jitter have an effect: TCP hides the rest.
//
// Faults belong to links, and a link has one direction: a round trip passes two.
//
// Duties of the caller:
//
//  1. A process of a place is started on a thread that EnterPlace has moved there, with a main process ID
//     that SetProcess makes known.
//  2. A process listens at the listen address of Endpoint, and tells others the dial address. They
//     differ in the form with proxies.
//  3. Close comes after the end of all processes. Namespaces and devices end with their last process
//     and descriptor, so they do not outlive this process, however it ends.
//
// Reading order: network.go, switch.go, namespace.go, proxy.go.
package network
